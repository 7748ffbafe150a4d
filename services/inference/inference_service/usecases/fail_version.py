"""Settle a version that cannot be served."""

from __future__ import annotations

import logging

from servicekit.errors import ServiceError
from servicekit.identity import Identity, acting_as

from inference_service.domain.models import InferenceModel, ModelState, ModelVersion
from inference_service.usecases.ports import Catalog, InferenceModels

log = logging.getLogger(__name__)

MAX_DESCRIPTION = 2000


class FailVersion:
    """Callable with what failed and why; where nothing is left to serve, the model's description says so, too."""

    def __init__(self, models: InferenceModels, catalog: Catalog) -> None:
        self._models, self._catalog = models, catalog

    async def __call__(self, model: InferenceModel, version: ModelVersion, message: str) -> None:
        log.warning("version %d of inference model %s failed: %s", version.number, model.name, message)
        version.fail(message)
        await self._models.save_version(model.uid, version)
        if not model.catalog_uid or model.state is not ModelState.FAILED:
            return
        try:
            # GET /models/{name} is where people look who know nothing of versions.
            with acting_as(Identity(user=model.owner, is_admin=True)):
                await self._catalog.describe(model.name, f"FAILED: {message}"[:MAX_DESCRIPTION])
        except ServiceError as error:
            log.warning("cannot note the failure of %s: %s", model.name, error.message)
