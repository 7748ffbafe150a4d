"""Whether something of a model runs, asked of the services that run things."""

from __future__ import annotations

from collections.abc import AsyncIterator

from dlmesh.inference.v1 import inference_pb2, inference_pb2_grpc
from dlmesh.training.v1 import training_pb2, training_pb2_grpc, trials_pb2, trials_pb2_grpc
from dlmesh.tuning.v1 import tuning_pb2, tuning_pb2_grpc
from servicekit.channels import PATIENCE_SECONDS, Channels, call_peer
from servicekit.errors import Code, ServiceError

ACTIVE = ("SUBMITTED", "RUNNING")

# (what it is called, its status)
Run = tuple[str, str]


class ActivityClient:
    def __init__(self, channels: Channels, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._channels = channels
        self._patience_seconds = patience_seconds

    async def of_model(self, name: str) -> str | None:
        """The first tuning, training, validation or prediction of `name` that waits or runs."""

        async def first_active(runs: AsyncIterator[Run]) -> str | None:
            async for run, status in runs:
                if status.upper() in ACTIVE:
                    return run
            return None

        # Tunings first: they start trainings.
        for listing in (self._tunings, self._trials, self._trainings, self._validations, self._predictions):
            try:
                found = await call_peer(
                    lambda listing=listing: first_active(listing(name)),  # type: ignore[misc]
                    patience_seconds=self._patience_seconds,
                )
            except ServiceError as error:
                # A peer that never heard of the model has nothing of it running.
                if error.code is not Code.NOT_FOUND:
                    raise
            else:
                if found is not None:
                    return str(found)
        return None

    async def _tunings(self, model: str) -> AsyncIterator[Run]:
        stub = self._channels.stub("tuning", tuning_pb2_grpc.ModelTuningServiceStub)
        async for detail in stub.ListModelTunings(tuning_pb2.ListModelTuningsRequest(model_name=model, length=0)):
            yield f"tuning {detail.input.name!r}", detail.state

    async def _trials(self, model: str) -> AsyncIterator[Run]:
        stub = self._channels.stub("training", trials_pb2_grpc.TrainingTrialServiceStub)
        answer = await stub.ListActiveTrials(trials_pb2.ListActiveTrialsRequest(model_name=model))
        for trial in answer.trials:
            yield f"a trial of tuning {trial.study!r}", "RUNNING"

    async def _trainings(self, model: str) -> AsyncIterator[Run]:
        stub = self._channels.stub("training", training_pb2_grpc.TrainingServiceStub)
        async for detail in stub.ListTrainings(training_pb2.ListTrainingsRequest(model_name=model)):
            yield f"training {detail.parameters.training_name!r}", detail.parameters.status

    async def _validations(self, model: str) -> AsyncIterator[Run]:
        stub = self._channels.stub("training", training_pb2_grpc.ValidationServiceStub)
        async for detail in stub.ListValidations(training_pb2.ListValidationsRequest(model_name=model)):
            yield f"validation {detail.parameters.name!r}", detail.status

    async def _predictions(self, model: str) -> AsyncIterator[Run]:
        stub = self._channels.stub("inference", inference_pb2_grpc.InferenceServiceStub)
        request = inference_pb2.ListPredictionsRequest(model_name=model, flag="false")
        async for detail in stub.ListPredictions(request):
            yield f"prediction {detail.prediction_name!r}", detail.status
