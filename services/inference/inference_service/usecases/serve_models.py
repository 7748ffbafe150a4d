"""Make inference models true: export, load, probe; load again what Triton lost; remove what was deleted."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from servicekit.errors import Code, ServiceError
from servicekit.identity import Identity, acting_as
from servicekit.reconcile import Next

from inference_service.domain.models import InferenceModel, ModelState, ModelVersion
from inference_service.usecases.create_model import ensure_listed
from inference_service.usecases.ports import (
    Catalog,
    ExportRefusedError,
    InferenceModels,
    LoadRefusedError,
    ModelServer,
    Predictions,
    Repository,
    ServerAwayError,
    Workspace,
)

log = logging.getLogger(__name__)

# A model that takes Triton down with it must not do so for ever.
MAX_CRASHES = 5
HEALTH_SECONDS = 5.0


class ServeModels:
    """One pass over the inference models; safe to be killed anywhere and to repeat."""

    def __init__(self, models: InferenceModels, catalog: Catalog, repository: Repository, server: ModelServer) -> None:
        self._models, self._catalog = models, catalog
        self._repository, self._server = repository, server
        self._crashes: dict[str, int] = {}
        self._looked_at = time.monotonic()

    async def __call__(self) -> Next:
        models = [model for model in await self._models.all() if model.state is not ModelState.FAILED]
        versions = [(model, version) for model in models for version in model.versions]
        exporting = [pair for pair in versions if pair[1].state is ModelState.EXPORTING]
        if [version for model, version in exporting if await self._export(model, version)]:
            return Next.AT_ONCE
        await self._keep_loaded([model for model in models if model.state is not ModelState.EXPORTING])
        is_settled = all(version.state in (ModelState.READY, ModelState.FAILED) for _, version in versions)
        return Next.LATER if is_settled else Next.SOON

    async def _keep_loaded(self, waiting: Sequence[InferenceModel]) -> None:
        if not waiting:
            return
        try:
            loaded = await self._server.loaded()
            for model in waiting:
                if _loading(model) or model.name not in loaded:
                    await self._load(model)
            if time.monotonic() - self._looked_at > HEALTH_SECONDS:
                await self._revive([model for model in waiting if model.name in loaded])
        except ServerAwayError as error:
            for model in waiting:
                version = _loading(model)
                if version is not None and version.status_message != str(error):
                    version.status_message = str(error)
                    await self._models.save_version(model.uid, version)

    async def _export(self, model: InferenceModel, version: ModelVersion) -> bool:
        is_listed = bool(model.catalog_uid)
        try:
            await ensure_listed(self._catalog, model)
            if not is_listed:
                await self._models.note_listed(model)
            await self._repository.publish(model, version.number)
        except ServiceError as error:
            if error.code is Code.UNAVAILABLE:
                return False
            await self._fail(model, version, error.message)
        except (ExportRefusedError, OSError) as error:
            await self._fail(model, version, f"cannot export training {version.training_name}: {error}")
        else:
            version.exported()
            await self._models.save_version(model.uid, version)
        return True

    async def _load(self, model: InferenceModel) -> None:
        version = _loading(model)
        suspect = version or model.versions[-1]
        try:
            await self._repository.offer(model.name, [*model.ready_versions, *([version.number] if version else [])])
            await self._server.load(model.name)
            await self._server.probe(model.name)
        except LoadRefusedError as error:
            await self._fail(model, suspect, f"Triton cannot serve it: {error}")
            return
        except ServerAwayError as error:
            self._crashes[model.uid] = self._crashes.get(model.uid, 0) + 1
            if self._crashes[model.uid] < MAX_CRASHES:
                raise
            await self._fail(model, suspect, f"Triton ended {MAX_CRASHES} times while loading it: {error}")
            return
        self._crashes.pop(model.uid, None)
        if version is not None:
            version.served()
            await self._models.save_version(model.uid, version)
        log.info("Triton serves %s", model.name)

    async def _revive(self, models: Sequence[InferenceModel]) -> None:
        for model in models:
            if model.state is ModelState.READY and await self._server.has_died(model.name):
                log.warning("the process of %s has gone; it is loaded again", model.name)
                await self._load(model)
        self._looked_at = time.monotonic()

    async def _fail(self, model: InferenceModel, version: ModelVersion, message: str) -> None:
        log.warning("version %d of inference model %s failed: %s", version.number, model.name, message)
        version.fail(message)
        await self._models.save_version(model.uid, version)
        if not model.catalog_uid or model.state is not ModelState.FAILED:
            return
        try:
            # GET /models/{name} is where people look who know nothing of versions.
            with acting_as(Identity(user=model.owner, is_admin=True)):
                await self._catalog.describe(model.name, f"FAILED: {message}"[:2000])
        except ServiceError as error:
            log.warning("cannot note the failure of %s: %s", model.name, error.message)


def _loading(model: InferenceModel) -> ModelVersion | None:
    return next((version for version in model.versions if version.state is ModelState.LOADING), None)


class RemoveDeleted:
    """One pass that removes what is left of deleted models, and of uploads that never became a prediction."""

    def __init__(
        self,
        models: InferenceModels,
        predictions: Predictions,
        catalog: Catalog,
        repository: Repository,
        server: ModelServer,
        workspace: Workspace,
    ) -> None:
        self._models, self._predictions, self._catalog = models, predictions, catalog
        self._repository, self._server, self._workspace = repository, server, workspace

    async def __call__(self) -> Next:
        # Listed before the rows: an entry is only made for a row that exists.
        entries = await self._repository.entries()
        models = await self._models.all()
        for name in entries - {model.name for model in models}:
            await self._repository.remove(name)
        for model in models:
            if model.catalog_uid:
                await self.remove_if_deleted(model)
        await self._workspace.remove_strays(await self._predictions.uids())
        return Next.LATER

    async def remove_if_deleted(self, model: InferenceModel) -> bool:
        """True when the models service no longer has the model and nothing of it is left here either."""
        with acting_as(Identity.service("inference")):
            listed = await self._catalog.find(model.name)
        if listed is not None and listed.uid == model.catalog_uid:
            return False
        try:
            await self._server.unload(model.name)
        except ServerAwayError as error:
            # What does not run serves nothing, and when it comes back the model is not loaded again.
            log.info("%s is not unloaded: %s", model.name, error)
        await self._repository.remove(model.name)
        await self._models.delete(model.uid)
        return True
