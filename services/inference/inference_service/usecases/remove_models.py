"""Remove what is left of deleted models and versions, and of uploads that never became a prediction."""

from __future__ import annotations

import logging

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

    async def __call__(self) -> Next:
        # Listed before the rows: an entry is only made for a row that exists.
        entries = await self._repository.entries()
        models = await self._models.all()
        for name in entries - {model.name for model in models}:
            await self._repository.remove(name)
        for model in models:
            gone = bool(model.catalog_uid) and await self.remove_if_deleted(model)
            if not gone and not self._residency.is_loading(model.name):
                await self._remove_versions(model)
        await self._workspace.remove_strays(await self._predictions.uids())
        return Next.LATER

    async def remove_if_deleted(self, model: InferenceModel) -> bool:
        """True when the models service no longer has the model and nothing of it is left here either."""
        with acting_as(Identity.service("inference")):
            listed = await self._catalog.find(model.name)
        if listed is not None and listed.uid == model.catalog_uid:
            return False
        try:
            await self._residency.drop(model.name)
        except ServerAwayError as error:
            # What does not run serves nothing, and when it comes back the model is not loaded again.
            log.info("%s is not unloaded: %s", model.name, error)
        await self._repository.remove(model.name)
        await self._models.delete(model.uid)
        return True

    async def _remove_versions(self, model: InferenceModel) -> None:
        # Triton may look into the folder of what it serves until it serves it no more.
        served = self._residency.loaded.get(model.name, frozenset())
        known = {version.number for version in model.versions if version.state is not ModelState.FAILED}
        await self._repository.keep(model.name, sorted(known | served))
