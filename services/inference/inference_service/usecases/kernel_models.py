"""Look at models with a kernel, start and stop them."""

from __future__ import annotations

from collections.abc import Callable

from servicekit.errors import conflict, not_found
from servicekit.identity import current_identity

from inference_service.domain.kernel_models import KIND, KernelModel
from inference_service.domain.kernel_pools import KernelPools, PoolStatistics
from inference_service.usecases.kernel_ports import KernelFolders, KernelModels
from inference_service.usecases.started_kernels import StartedKernels

# A model is moved by its users and by the loop; each attempt sees what the other did.
_ATTEMPTS = 10


class KernelModelQueries:
    """What callers may see."""

    def __init__(self, models: KernelModels, folders: KernelFolders, pools: KernelPools) -> None:
        self._models, self._folders, self._pools = models, folders, pools

    async def list_visible(self) -> list[KernelModel]:
        """The caller's, oldest first."""
        identity = current_identity()
        return [model for model in await self._models.all() if identity.may_access(model.owner)]

    async def get(self, name: str) -> KernelModel:
        """One; 404, 403."""
        model = await self._models.find(name)
        if model is None:
            raise not_found(KIND, name)
        current_identity().require_access(KIND, name, model.owner)
        return model

    async def readme(self, name: str) -> str:
        """Its README.md, empty when there is none."""
        return await self._folders.readme((await self.get(name)).uid)

    async def statistics(self, name: str) -> tuple[KernelModel, PoolStatistics]:
        """What its kernels do; nothing of one that is stopped."""
        model = await self.get(name)
        return model, self._pools.statistics(model.uid)


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
