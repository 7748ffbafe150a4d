"""Make versions true as far as the disk goes: list their model, write their folder into the model repository."""

from __future__ import annotations

from collections.abc import Callable

from servicekit.errors import Code, ServiceError
from servicekit.reconcile import Next

from inference_service.domain.models import InferenceModel, ModelState, ModelVersion
from inference_service.usecases.create_model import ensure_listed
from inference_service.usecases.fail_version import FailVersion
from inference_service.usecases.ports import Catalog, ExportRefusedError, InferenceModels, Repository


class ExportModels:
    """One pass over the versions that are EXPORTING; safe to be killed anywhere and to repeat.

    `exported` is called when there is something new to load.
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

    async def __call__(self) -> Next:
        exporting = [
            (model, version)
            for model in await self._models.all()
            for version in model.versions
            if version.state is ModelState.EXPORTING
        ]
        for model, version in exporting:
            if await self._export(model, version):
                # A large one takes its time, and meanwhile others came or went: look again.
                return Next.AT_ONCE
        return Next.SOON if exporting else Next.LATER

    async def _export(self, model: InferenceModel, version: ModelVersion) -> bool:
        """False when it has to wait for a peer."""
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
        self._exported()
        return True
