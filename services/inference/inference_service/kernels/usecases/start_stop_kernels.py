"""Start and stop the kernels of a model."""

from __future__ import annotations

from collections.abc import Callable

from servicekit.errors import conflict

from inference_service.kernels.domain.models import KIND, KernelModel
from inference_service.kernels.usecases.model_queries import KernelModelQueries
from inference_service.kernels.usecases.ports import KernelModels
from inference_service.kernels.usecases.started_kernels import StartedKernels

# A model is moved by its users and by the loop; each attempt sees what the other did.
_ATTEMPTS = 10


class StartStopKernels:
    """Write what is wanted; the loop does it."""

    def __init__(
        self, models: KernelModels, queries: KernelModelQueries, started: StartedKernels, wake: Callable[[], None]
    ) -> None:
        self._models, self._queries, self._started, self._wake = models, queries, started, wake

    async def start(self, name: str) -> None:
        """Have kernels; 409 while it is being stopped."""
        await self._move(name, KernelModel.start)

    async def stop(self, name: str) -> None:
        """Answer what was accepted, and have none."""
        self._started.drop((await self._move(name, KernelModel.stop)).name)

    async def _move(self, name: str, move: Callable[[KernelModel], bool]) -> KernelModel:
        for _ in range(_ATTEMPTS):
            model = await self._queries.get(name)
            before = model.state
            if not move(model):
                return model
            if await self._models.move(model, before):
                self._wake()
                return model
        raise conflict(f"{KIND} {name!r} is started and stopped by others in this moment; try again")
