"""Serve another training beside those that a model serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from servicekit.errors import conflict, invalid

from inference_service.domain.models import ModelVersion
from inference_service.usecases.create_model import check_training, make_version
from inference_service.usecases.ports import Catalog, InferenceModels, ModelServer, Repository, Trainings
from inference_service.usecases.served_models import find_served_model

# Each that is READY is in memory while the model is.
MAX_VERSIONS = 10


@dataclass(frozen=True)
class VersionRequest:
    """Which training of which model; the model that version 1 was made of when none is named."""

    name: str
    training_name: str
    model_name: str = ""


class AddVersion:
    """Callable with a request; writes the row, the loops do the rest."""

    def __init__(
        self,
        models: InferenceModels,
        catalog: Catalog,
        trainings: Trainings,
        repository: Repository,
        server: ModelServer,
        wake: Callable[[], None],
    ) -> None:
        self._models, self._catalog, self._trainings = models, catalog, trainings
        self._repository, self._server, self._wake = repository, server, wake

    async def __call__(self, request: VersionRequest) -> ModelVersion:
        model = await find_served_model(self._models, request.name)
        if not request.training_name:
            raise invalid("trainName", "", "a name")
        source = await self._catalog.get(request.model_name or model.source_model)
        training = await self._trainings.get(source.name, request.training_name)
        await check_training(self._repository, source, training)
        if difference := await self._repository.differs(model.name, training.checkpoints_path):
            raise invalid(
                "trainName", training.name, f"a training that takes and answers what {model.name} does: {difference}"
            )
        if len(model.versions) >= MAX_VERSIONS:
            raise conflict(
                f"inference model {model.name!r} has {MAX_VERSIONS} versions; delete one first",
                reason="TOO_MANY_VERSIONS",
                metadata={"name": model.name},
            )
        self._server.require()
        added = await self._models.add_version(model.uid, make_version(0, source, training))
        self._wake()
        return added
