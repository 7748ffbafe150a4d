"""Change and delete models with a kernel, while they are stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from servicekit.errors import ServiceError, conflict
from servicekit.times import utc_now

from inference_service.kernels.domain.models import KernelModel
from inference_service.kernels.domain.profiles import (
    KernelProfile,
    Pairs,
    check_attributes,
    check_environments,
    check_text,
)
from inference_service.kernels.usecases.model_queries import KernelModelQueries
from inference_service.kernels.usecases.ports import KernelFolders, KernelModels


@dataclass(frozen=True)
class KernelChanges:
    """What is to be different; None for what stays."""

    tag: str | None = None
    weight_path: str | None = None
    attributes: Pairs | None = None
    environments: Pairs | None = None
    resource_requirement: str | None = None
    umask: str | None = None
    instance_min: int | None = None
    instance_max: int | None = None


class ChangeKernelModel:
    """Each of them is 409 unless the model is stopped, also when another changes or starts it in this moment."""

    def __init__(self, models: KernelModels, folders: KernelFolders, queries: KernelModelQueries) -> None:
        self._models, self._folders, self._queries = models, folders, queries

    async def update(self, name: str, read: Callable[[KernelModel], KernelChanges]) -> None:
        """`read` says what is to be different, shown the model as it is."""
        model = await self._changeable(name)
        changes = read(model)
        former = model.weights
        if changes.tag is not None:
            model.tag = check_text("tag", changes.tag)
        if changes.attributes is not None:
            model.attributes = check_attributes("attributes", changes.attributes)
        if changes.environments is not None:
            model.environments = check_environments("mk_environments", changes.environments)
        model.profile = _changed_profile(model.profile, changes)
        if changes.weight_path is not None:
            files = await self._folders.add_weights(model, changes.weight_path)
            model.weights, model.size_bytes = files.weights, files.size_bytes
        # A client that goes away now must not leave a row without its weights.
        await asyncio.shield(self._replace(model, former))

    async def update_profile(self, name: str, change: Callable[[KernelModel], KernelProfile]) -> None:
        """`change` makes the new profile, shown the model as it is."""
        model = await self._changeable(name)
        model.profile = change(model).checked()
        await self._save(model)

    async def delete(self, name: str) -> None:
        """Remove it and its files."""
        model = await self._changeable(name)
        if not await self._models.delete(model.uid):
            raise _overtaken(name)
        await asyncio.shield(self._folders.remove(model.uid))

    async def _replace(self, model: KernelModel, former: str) -> None:
        """Save the model and remove the weights that it no longer has."""
        try:
            await self._save(model)
        except ServiceError:
            if model.weights != former:
                await self._folders.remove_weights(model, model.weights)
            raise
        # Whatever else is thrown may come after the commit: weights without a row are removed as strays.
        if model.weights != former:
            await self._folders.remove_weights(model, former)

    async def _changeable(self, name: str) -> KernelModel:
        model = await self._queries.get(name)
        model.require_changeable()
        return model

    async def _save(self, model: KernelModel) -> None:
        seen, model.updated_at = model.updated_at, utc_now()
        if not await self._models.change(model, seen):
            raise _overtaken(model.name)


def _changed_profile(profile: KernelProfile, changes: KernelChanges) -> KernelProfile:
    if changes.resource_requirement is not None:
        profile = profile.with_requirement(changes.resource_requirement)
    if changes.umask is not None:
        profile = replace(profile, kernel=replace(profile.kernel, umask=changes.umask))
    policy = profile.policy
    if changes.instance_min is not None:
        policy = replace(policy, kernel_min=changes.instance_min)
    if changes.instance_max is not None:
        policy = replace(policy, kernel_max=changes.instance_max)
    return replace(profile, policy=policy).checked()


def _overtaken(name: str) -> ServiceError:
    return conflict(f"edimodel {name!r} was changed, started or deleted in this moment; look at it and try again")
