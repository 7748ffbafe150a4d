"""Look at models with a kernel."""

from __future__ import annotations

from servicekit.errors import not_found
from servicekit.identity import current_identity

from inference_service.kernels.domain.models import KIND, KernelModel
from inference_service.kernels.domain.pools import KernelPools, PoolStatistics
from inference_service.kernels.usecases.ports import KernelFolders, KernelModels


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
