"""Start a training: check the request, freeze the facts it starts from, write one row."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

from training_service.domain.runs import Training
from training_service.usecases.ports import Models, Trainings
from training_service.usecases.prepare_training import PrepareTraining
from training_service.usecases.training_request import TrainingRequest, check_request


class StartTraining:
    """Callable with a model's name and a request; returns the stored training."""

    def __init__(
        self, trainings: Trainings, models: Models, prepare: PrepareTraining, wake: Callable[[], None]
    ) -> None:
        self._trainings, self._models, self._prepare, self._wake = trainings, models, prepare, wake

    async def __call__(self, model_name: str, request: TrainingRequest) -> Training:
        check_request(request)
        model = await self._models.get(model_name)
        training = await self._prepare(model, request, uuid4().hex, uuid4().hex)
        await self._trainings.add(training)
        self._wake()
        return training
