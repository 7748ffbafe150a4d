"""The contract as data: methods and messages of the descriptor set, rows of the reference in tests/contract/data."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dlmesh.api.v1 import annotations_pb2
from google.api import annotations_pb2 as http_annotations_pb2
from google.api import httpbody_pb2  # noqa: F401 - registers google.api.HttpBody
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "tests" / "contract" / "data"
DESCRIPTORS = ROOT / "libs" / "contracts" / "descriptors.binpb"
BASE = "/platform/rest/deeplearning/v1"
# What an operation declares as long as a part of it is not built.
NOT_BUILT = 501

TYPE_OF_KIND = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
}


@dataclass(frozen=True)
class Rule:
    """A method with its HTTP rule."""

    method: MethodDescriptor
    verb: str
    path: str
    body: str
    contract: Any

    @property
    def operation_id(self) -> str:
        return str(self.contract.operation_id)

    @property
    def template(self) -> str:
        """The path with nameless variables."""
        return re.sub(r"\{[^}]*\}", "{}", self.path)

    @property
    def variables(self) -> list[str]:
        return re.findall(r"\{([^}=]*)[^}]*\}", self.path)

    @property
    def body_message(self) -> Descriptor:
        """What the HTTP body is parsed into."""
        request = self.method.input_type
        return request if self.body == "*" else request.fields_by_name[self.body].message_type

    def query_fields(self) -> dict[str, FieldDescriptor]:
        """Fields that neither the path nor the body carries, by JSON name."""
        if self.body == "*":
            return {}
        bound = {*self.variables, self.body}
        return {field.json_name: field for field in self.method.input_type.fields if field.name not in bound}


@cache
def pool() -> descriptor_pool.DescriptorPool:
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    found = descriptor_pool.DescriptorPool()
    for file in files.file:
        found.Add(file)
    return found


def own_files() -> list[descriptor_pb2.FileDescriptorProto]:
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    return [file for file in files.file if file.package.startswith("dlmesh.")]


def methods() -> Iterator[MethodDescriptor]:
    for file in own_files():
        for service in file.service:
            yield from pool().FindServiceByName(f"{file.package}.{service.name}").methods


def http_rule(method: MethodDescriptor) -> Any:
    """google.api.HttpRule of a method; empty when it has none."""
    return _options(method).Extensions[http_annotations_pb2.http]


def http_contract(method: MethodDescriptor) -> Any:
    """dlmesh.api.v1.HttpContract of a method; empty when it has none."""
    return _options(method).Extensions[annotations_pb2.http_contract]


def _options(method: MethodDescriptor) -> descriptor_pb2.MethodOptions:
    # The set's own pool knows the extensions under other classes: parse again with the generated ones.
    return descriptor_pb2.MethodOptions.FromString(method.GetOptions().SerializeToString())


@cache
def rules() -> dict[str, Rule]:
    """Every HTTP rule, by operation id."""
    found: dict[str, Rule] = {}
    for method in methods():
        rule = http_rule(method)
        verb = rule.WhichOneof("pattern")
        if verb is None:
            continue
        one = Rule(method, verb.upper(), getattr(rule, verb), rule.body, http_contract(method))
        assert one.operation_id not in found, f"operation_id {one.operation_id} stands twice"
        found[one.operation_id] = one
    return found


def type_of(field: FieldDescriptor) -> str:
    """A field's JSON type: a scalar, "[[]]" for lists of lists, or the name of its message; arrays in brackets."""
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        name = field.message_type.full_name
        one = "[]" if name == "google.protobuf.ListValue" else name
    else:
        one = TYPE_OF_KIND.get(field.type, f"type {field.type}")
    return f"[{one}]" if field.is_repeated else one


@cache
def table(name: str) -> list[dict[str, str]]:
    """Rows of data/<name>.tsv by column."""
    with (DATA / f"{name}.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@cache
def schemas() -> dict[str, dict[str, str]]:
    """Fields and types of every schema: the reference and what we add."""
    found: dict[str, dict[str, str]] = {}
    for row in [*table("schemas"), *table("additions")]:
        fields = found.setdefault(row["schema"], {})
        assert row["field"] not in fields, f"{row['schema']}.{row['field']} stands twice in data/"
        fields[row["field"]] = row["type"]
    return found
