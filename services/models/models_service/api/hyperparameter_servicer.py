"""HyperparameterService: hyperparameters of what is trained beside a model's own."""

from __future__ import annotations

from typing import Any

from dlmesh.models.v1 import hyperparameters_pb2, hyperparameters_pb2_grpc
from servicekit.errors import invalid

from models_service.domain.hyperparameters import Value
from models_service.usecases.settle_hyperparameters import SettleHyperparameters


class HyperparameterServicer(hyperparameters_pb2_grpc.HyperparameterServiceServicer):
    """Translates; see hyperparameters.proto for what the call promises."""

    def __init__(self, settle: SettleHyperparameters) -> None:
        self._settle = settle

    async def SettleHyperparameters(
        self, request: hyperparameters_pb2.SettleHyperparametersRequest, context: Any
    ) -> hyperparameters_pb2.SettleHyperparametersResponse:
        field = request.field or "hyperparameter"
        settled = await self._settle(
            request.model_name,
            {name: _value(f"{field}.{name}", value) for name, value in request.given.items()},
            {
                name: [_value(f"{field}.{name}", value) for value in several.values]
                for name, several in request.candidates.items()
            },
            accelerator=request.accelerator,
            field=field,
        )
        return hyperparameters_pb2.SettleHyperparametersResponse(
            hyperparameters={name: _message(value) for name, value in settled.hyperparameters.items()},
            known=[
                hyperparameters_pb2.KnownHyperparameter(
                    name=known.name, data_type=known.data_type, allowed=known.allowed, words=known.words
                )
                for known in settled.known
            ],
        )


def _value(place: str, message: hyperparameters_pb2.HyperparameterValue) -> Value:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise invalid(place, "", "a value; it has to be given")
    value: Value = getattr(message, kind)
    return value


def _message(value: Value) -> hyperparameters_pb2.HyperparameterValue:
    if isinstance(value, bool):
        return hyperparameters_pb2.HyperparameterValue(flag=value)
    if isinstance(value, int):
        return hyperparameters_pb2.HyperparameterValue(whole=value)
    if isinstance(value, float):
        return hyperparameters_pb2.HyperparameterValue(number=value)
    return hyperparameters_pb2.HyperparameterValue(text=value)
