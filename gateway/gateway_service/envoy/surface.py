"""What is public: read from the contracts' descriptor set, so that a new RPC needs no change here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dlmesh
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

REST_BODY = ".google.api.HttpBody"
# Public services without a REST face: REST has no streams of their kind.
GRPC_ONLY = frozenset({"dlmesh.inference.v1.KernelStreamService"})
_COPY_SECONDS = 6 * 3600
# What may be at work for long before it says a word, and for how many seconds: copies of a model's files, tasks (a
# profile lets one run for a day, and it may wait before).
SILENT_SECONDS = {
    "/dlmesh.inference.v1.KernelModelService/RegisterKernelModel": _COPY_SECONDS,
    "/dlmesh.inference.v1.KernelModelService/PublishKernelModel": _COPY_SECONDS,
    "/dlmesh.inference.v1.KernelModelService/UploadKernelModel": _COPY_SECONDS,
    "/dlmesh.inference.v1.KernelModelService/UpdateKernelModel": _COPY_SECONDS,
    "/dlmesh.inference.v1.KernelModelService/InvokeKernelModel": 25 * 3600,
}


@dataclass(frozen=True)
class PublicMethod:
    """One RPC that clients may call, with a REST face or (`rest` is empty) without.

    `peer` is the service that serves it; `is_read`: an HTTP GET; `is_upload`: the request is a stream; `is_long`: one
    of the bodies is, or the work, so that no time limit fits it. `rest` holds (verb, path template) pairs.
    """

    service: str
    name: str
    peer: str
    is_read: bool
    is_upload: bool
    is_long: bool
    rest: tuple[tuple[str, str], ...]

    @property
    def grpc_path(self) -> str:
        """`/package.Service/Method`."""
        return f"/{self.service}/{self.name}"

    @property
    def silent_seconds(self) -> int:
        """How long both sides may say nothing; 0: as long as everywhere."""
        return SILENT_SECONDS.get(self.grpc_path, 0)


@dataclass(frozen=True)
class PublicSurface:
    """All public methods and the descriptor set they were read from.

    A gRPC service is public when its methods carry `google.api.http`, or when it is one of `GRPC_ONLY`; internal ones
    (jobs, metrics) are neither.
    """

    descriptor_path: Path
    methods: tuple[PublicMethod, ...]

    @property
    def services(self) -> tuple[str, ...]:
        """Full names of the public gRPC services, sorted."""
        return tuple(sorted({method.service for method in self.methods}))

    @property
    def transcoded_services(self) -> tuple[str, ...]:
        """Those with a REST face."""
        return tuple(name for name in self.services if name not in GRPC_ONLY)

    @property
    def path_variables(self) -> tuple[str, ...]:
        """Variables of all paths in both spellings of JSON (`model_name` and `modelName`), sorted."""
        templates = (template for method in self.methods for _, template in method.rest)
        names = {name for template in templates for name in re.findall(r"\{([a-z0-9_]+)", template)}
        return tuple(sorted(names | {re.sub(r"_([a-z0-9])", lambda m: m[1].upper(), name) for name in names}))

    @property
    def wire_names(self) -> dict[str, str]:
        """JSON name by proto name where they differ, for the fields of JSON bodies.

        The transcoder complains of a field by its proto name, which no REST client has seen. A proto name that has
        several JSON names keeps its own when that is one of them, else all are given.
        """
        files = descriptor_pb2.FileDescriptorSet.FromString(self.descriptor_path.read_bytes()).file
        messages = {f".{file.package}.{message.name}": message for file in files for message in file.message_type}
        frontier = {
            method.input_type
            for file in files
            for service in file.service
            for method in service.method
            if method.options.Extensions[annotations_pb2.http].body and not method.client_streaming
        }
        found: dict[str, set[str]] = {}
        seen: set[str] = set()
        while frontier:
            seen |= frontier
            fields = [field for name in frontier if name in messages for field in messages[name].field]
            for field in fields:
                found.setdefault(field.name, set()).add(field.json_name)
            frontier = {field.type_name for field in fields if field.type_name} - seen
        return {
            name: " or ".join(sorted(spellings)) for name, spellings in sorted(found.items()) if name not in spellings
        }

    @classmethod
    def from_contracts(cls) -> PublicSurface:
        """The surface of the installed contracts."""
        return cls.from_file(Path(next(iter(dlmesh.__path__))).parent / "descriptors.binpb")

    @classmethod
    def from_file(cls, path: Path) -> PublicSurface:
        """The surface of a serialized FileDescriptorSet."""
        files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file
        return cls(path, tuple(method for file in files for method in _public_methods(file)))


def _public_methods(file: descriptor_pb2.FileDescriptorProto) -> Iterator[PublicMethod]:
    if not file.package.startswith("dlmesh."):
        return
    messages = {f".{file.package}.{message.name}": message for message in file.message_type}
    for service in file.service:
        for method in service.method:
            rule = method.options.Extensions[annotations_pb2.http]
            rest = tuple(
                (verb, getattr(binding, verb))
                for binding in (rule, *rule.additional_bindings)
                if (verb := binding.WhichOneof("pattern"))
            )
            if not rest and f"{file.package}.{service.name}" not in GRPC_ONLY:
                continue
            types = {method.input_type, method.output_type}
            request = messages.get(method.input_type)
            types |= {field.type_name for field in request.field} if request else set()
            yield PublicMethod(
                service=f"{file.package}.{service.name}",
                name=method.name,
                peer=file.package.split(".")[1],
                is_read=bool(rest) and all(verb == "get" for verb, _ in rest),
                is_upload=method.client_streaming,
                is_long=method.client_streaming
                or method.server_streaming
                or REST_BODY in types
                or f"/{file.package}.{service.name}/{method.name}" in SILENT_SECONDS,
                rest=rest,
            )
