"""HyperparameterService: hyperparameters of what is trained beside a model's own."""

from __future__ import annotations

from typing import Any

from dlmesh.models.v1 import hyperparameters_pb2, hyperparameters_pb2_grpc
from servicekit.trials import value_message, value_of

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
            {name: value_of(value, f"{field}.{name}") for name, value in request.given.items()},
            {
                name: [value_of(value, f"{field}.{name}") for value in several.values]
                for name, several in request.candidates.items()
            },
            accelerator=request.accelerator,
            field=field,
        )
        return hyperparameters_pb2.SettleHyperparametersResponse(
            hyperparameters={
                name: value_message(hyperparameters_pb2.HyperparameterValue, value)
                for name, value in settled.hyperparameters.items()
            },
            known=settled.known,
        )
