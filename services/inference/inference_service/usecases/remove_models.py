"""Remove what is left of deleted models and versions, and of uploads that never became a prediction."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict

from servicekit.identity import Identity, acting_as
from servicekit.reconcile import Next

from inference_service.domain.models import InferenceModel, ModelState
from inference_service.usecases.ports import (
    Catalog,
    InferenceModels,
    Predictions,
    Repository,
    ServerAwayError,
    Workspace,
)
from inference_service.usecases.residency import Residency

log = logging.getLogger(__name__)


class RemoveDeleted:
    """One pass; safe to be killed anywhere and to repeat."""

    def __init__(
        self,
        models: InferenceModels,
        predictions: Predictions,
        catalog: Catalog,
        repository: Repository,
        residency: Residency,
        workspace: Workspace,
    ) -> None:
        self._models, self._predictions, self._catalog = models, predictions, catalog
        self._repository, self._residency, self._workspace = repository, residency, workspace
        # The loop and requests remove; who comes second must not take what has the name by then.
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def __call__(self) -> Next:
        # Listed before the rows: all this is only made for rows that exist.
        entries, drafts = await self._repository.entries(), await self._repository.drafts()
        rooms = await self._repository.rooms()
        models = await self._models.all()
        names = {model.name for model in models}
        for name in entries.keys() - names:
            await self._repository.remove(name, entries[name])
        # What Triton still has may still write.
        in_use = names | self._residency.loaded.keys()
        left = [folder for folder, name in rooms.items() if name not in in_use]
        await self._repository.sweep(drafts - {model.uid for model in models}, left)
        for model in models:
            gone = bool(model.catalog_uid) and await self.remove_if_deleted(model)
            if not gone and not self._residency.is_loading(model.name):
                await self._remove_versions(model)
        await self._workspace.remove_strays(await self._predictions.uids())
        return Next.LATER

    async def remove_if_deleted(self, model: InferenceModel) -> bool:
        """True when the models service no longer has the model and nothing of it is left here either."""
        async with self._locks[model.name]:
            if not await self._is_there(model):
                return True
            with acting_as(Identity.service("inference")):
                listed = await self._catalog.find(model.name)
            if listed is not None and listed.uid == model.catalog_uid:
                return False
            try:
                await self._residency.drop(model.name)
            except ServerAwayError as error:
                # What does not run serves nothing, and when it comes back the model is not loaded again.
                log.info("%s is not unloaded: %s", model.name, error)
            await self._repository.remove(model.name, model.uid)
            await self._models.delete(model.uid)
            return True

    async def _is_there(self, model: InferenceModel) -> bool:
        known = await self._models.find(model.name)
        return known is not None and known.uid == model.uid

    async def _remove_versions(self, model: InferenceModel) -> None:
        # Listed before the row is read: folders are only made for versions that it has.
        folders = await self._repository.versions(model.name)
        row = await self._models.find(model.name)
        if row is None or row.uid != model.uid or self._residency.is_loading(model.name):
            return
        # Triton may look into the folder of what it serves until it serves it no more.
        served = self._residency.loaded.get(model.name, frozenset())
        known = {version.number for version in row.versions if version.state is not ModelState.FAILED}
        if surplus := folders - known - served:
            await self._repository.remove_versions(model.name, model.uid, surplus)
