"""Make versions true as far as the disk goes: list their model, write their folder into the model repository."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from servicekit.errors import Code, ServiceError
from servicekit.reconcile import Next

from inference_service.domain.models import InferenceModel, ModelState, ModelVersion
from inference_service.usecases.create_model import ensure_listed
from inference_service.usecases.fail_version import FailVersion
from inference_service.usecases.ports import Catalog, ExportRefusedError, InferenceModels, Repository

# Of as many users: they copy weights, and the disk is one.
EXPORTS_AT_ONCE = 3
LOOK_SECONDS = 0.5

log = logging.getLogger(__name__)


class ExportModels:
    """One pass over the versions that are EXPORTING; safe to be killed anywhere and to repeat.

    A few are exported at a time, one of each user. `exported` is called when there is something new to load.
    """

    def __init__(
        self,
        models: InferenceModels,
        catalog: Catalog,
        repository: Repository,
        fail: FailVersion,
        exported: Callable[[], None],
    ) -> None:
        self._models, self._catalog = models, catalog
        self._repository, self._fail, self._exported = repository, fail, exported
        # By user; a large one goes on beyond its pass.
        self._running: dict[str, asyncio.Task[bool]] = {}

    async def __call__(self) -> Next:
        exporting = [
            (model, version)
            for model in await self._models.all()
            for version in model.versions
            if version.state is ModelState.EXPORTING
        ]
        for model, version in exporting:
            if len(self._running) < EXPORTS_AT_ONCE and model.owner not in self._running:
                self._running[model.owner] = asyncio.create_task(self._export(model, version))
        if not self._running:
            return Next.LATER
        # Not for long: others come meanwhile.
        await asyncio.wait(self._running.values(), timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        ended = [self._running.pop(user) for user, task in list(self._running.items()) if task.done()]
        went_on = [task.result() for task in ended]
        return Next.SOON if went_on and not any(went_on) else Next.AT_ONCE

    async def close(self) -> None:
        """When what is under way has ended."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _export(self, model: InferenceModel, version: ModelVersion) -> bool:
        """False when it has to wait for a peer."""
        is_listed = bool(model.catalog_uid)
        try:
            await ensure_listed(self._catalog, model)
            if not is_listed:
                await self._models.note_listed(model)
            await self._publish(model, version)
        except ServiceError as error:
            if error.code is Code.UNAVAILABLE:
                return False
            await self._fail(model, version, error.message)
        except (ExportRefusedError, OSError) as error:
            await self._fail(model, version, f"cannot export training {version.training_name}: {error}")
        else:
            version.exported()
            await self._models.save_version(model.uid, version)
        self._exported()
        return True

    async def _publish(self, model: InferenceModel, version: ModelVersion) -> None:
        try:
            await self._repository.publish(model, version.number)
        except (ServiceError, ExportRefusedError, OSError):
            raise
        except Exception as error:
            # Whatever a training has left that nobody foresaw, others must be exported.
            log.exception("cannot export %s, version %d", model.name, version.number)
            raise ExportRefusedError(repr(error)) from error
