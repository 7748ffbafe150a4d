"""Model tunings are refused with what is coming, until a training can be a trial."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from dlmesh.tuning.v1 import tuning_pb2, tuning_pb2_grpc
from servicekit.errors import not_built

TUNING = "model tuning (search over a model's hyperparameters, its result made into a model)"


def _refuse_all(what: str, service: Any) -> Callable[[type], type]:
    """A class decorator: each method of `service` (a service descriptor) answers NOT_BUILT."""

    async def unary(self: object, request: object, context: object) -> None:
        raise not_built(what)

    async def stream(self: object, request: object, context: object) -> AsyncIterator[None]:
        raise not_built(what)
        yield

    def decorate(servicer: type) -> type:
        for method in service.methods:
            setattr(servicer, method.name, stream if method.server_streaming else unary)
        return servicer

    return decorate


@_refuse_all(TUNING, tuning_pb2.DESCRIPTOR.services_by_name["ModelTuningService"])
class ModelTuningServicer(tuning_pb2_grpc.ModelTuningServiceServicer):
    """/models/{modelname}/hypersearch."""
