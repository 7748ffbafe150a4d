"""Publish a model with a kernel: from a folder of the server, or from an upload."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from servicekit.errors import ServiceError, already_exists, invalid
from servicekit.identity import current_identity
from servicekit.names import check_name
from servicekit.times import utc_now

from inference_service.kernels.domain.manifests import DEFAULT_KERNEL, FILE, Manifest, read_pairs_text
from inference_service.kernels.domain.models import KIND, RESERVED_NAMES, KernelModel
from inference_service.kernels.domain.profiles import (
    KernelProfile,
    Pairs,
    check_attributes,
    check_environments,
    check_text,
)
from inference_service.kernels.usecases.ports import KernelFolders, KernelModels
from inference_service.usecases.ports import Upload

Receive = Callable[[Path], Awaitable[Sequence[Upload]]]
# Words of runtimes in which no Python runs.
_OTHER_RUNTIMES = ("cpp", "c++", "java")


@dataclass(frozen=True)
class PublishRequest:
    """A folder of the server and what is said of it beside its model.json; an empty text leaves a thing to that."""

    name: str
    model_path: str
    kernel_path: str = ""
    weight_path: str = ""
    runtime: str = ""
    attributes: str = ""
    environments: str = ""
    type: str = ""


class PublishKernelModel:
    """Nothing is left of what is refused, and nobody sees a model whose files are not whole."""

    def __init__(self, models: KernelModels, folders: KernelFolders) -> None:
        self._models, self._folders = models, folders

    async def from_folder(self, request: PublishRequest) -> KernelModel:
        """Copies the folder."""
        await self._check_name(request.name)
        attributes = check_attributes("attribute", read_pairs_text("attribute", request.attributes))
        environments = check_environments("mcenv", read_pairs_text("mcenv", request.environments, "name"))
        check_text("type", request.type)
        _check_runtime("runtime", request.runtime)
        uid = uuid4().hex
        try:
            await self._folders.copy(uid, request.model_path)
            manifest = await self._folders.manifest(uid)
            said = replace(
                manifest,
                type=request.type or manifest.type,
                runtime=request.runtime or manifest.runtime,
                attributes=_over(manifest.attributes, attributes),
                environments=_over(manifest.environments, environments),
            )
            model = await self._finish(uid, request, said)
        except BaseException:
            await asyncio.shield(self._folders.remove(uid))
            raise
        return await asyncio.shield(self._add(model))

    async def from_upload(self, name: str, receive: Receive) -> KernelModel:
        """`receive` takes the upload into a folder."""
        await self._check_name(name)
        uid = uuid4().hex
        try:
            await self._folders.keep(uid, await receive(self._folders.spool(uid)))
            manifest = await self._folders.manifest(uid)
            model = await self._finish(uid, PublishRequest(name, ""), manifest)
        except BaseException:
            await asyncio.shield(self._folders.remove(uid))
            raise
        return await asyncio.shield(self._add(model))

    async def _check_name(self, name: str) -> None:
        check_name("name", name, RESERVED_NAMES)
        if await self._models.find(name) is not None:
            raise already_exists(KIND, name)

    async def _finish(self, uid: str, request: PublishRequest, said: Manifest) -> KernelModel:
        _check_runtime(f"{FILE}, runtime", said.runtime)
        profile = profile_of(said)
        files = await self._folders.finish(
            uid,
            _either("edi_py", request.kernel_path, "kernel_path", said.kernel_path or DEFAULT_KERNEL),
            _either("weightPath", request.weight_path, "weight_path", said.weight_path),
            request.model_path,
        )
        now = utc_now()
        return KernelModel(
            uid=uid,
            name=request.name,
            owner=current_identity().user,
            created_at=now,
            updated_at=now,
            kernel_path=files.kernel_path,
            weights=files.weights,
            type=said.type,
            tag=said.tag,
            runtime=said.runtime,
            schema_version=said.schema_version or "1",
            attributes=said.attributes,
            environments=said.environments,
            size_bytes=files.size_bytes,
            profile=profile,
        )

    async def _add(self, model: KernelModel) -> KernelModel:
        """Of a client that goes away now there is a model all the same, or nothing."""
        try:
            await self._models.add(model)
        except ServiceError:
            await self._folders.remove(model.uid)
            raise
        # Whatever else is thrown may come after the commit: a folder without a row is removed as a stray.
        return model


def profile_of(said: Manifest) -> KernelProfile:
    """The profile that a new model begins with; 400 naming the key of model.json."""
    profile = KernelProfile().with_requirement(said.resource_requirement)
    if said.umask:
        profile = replace(profile, kernel=replace(profile.kernel, umask=said.umask))
    policy = profile.policy
    least = policy.kernel_min if said.instance_min is None else said.instance_min
    most = max(policy.kernel_max, least) if said.instance_max is None else said.instance_max
    if not 0 <= least <= 1000:
        raise invalid(f"{FILE}, mk_instance_min", least, "a whole number from 0 to 1000")
    if most != -1 and not max(1, least) <= most <= 1000:
        raise invalid(
            f"{FILE}, mk_instance_max", most, f"a whole number from {max(1, least)} to 1000, or -1 for no limit"
        )
    return replace(profile, policy=replace(policy, kernel_min=least, kernel_max=most)).checked()


def _check_runtime(field: str, text: str) -> None:
    check_text(field, text)
    if any(word in text.lower() for word in _OTHER_RUNTIMES):
        raise invalid(field, text, "a runtime of Python, as dlipy3: this platform's Python is what kernels run in")


def _either(field: str, text: str, key: str, otherwise: str) -> tuple[str, str]:
    """What the request says with the field that says it, else what model.json says."""
    return (field, text) if text else (f"{FILE}, {key}", otherwise)


def _over(pairs: Pairs, others: Pairs) -> Pairs:
    """`pairs` with `others` added and put over those of the same key."""
    return tuple({**dict(pairs), **dict(others)}.items())
