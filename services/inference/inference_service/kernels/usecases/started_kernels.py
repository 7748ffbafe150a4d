"""Which models take tasks now: asked for every task, so that none needs the database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from inference_service.kernels.domain.models import KernelModel


class StartedKernels:
    """Kept by the loop. What is missing may still be in the database: it was started in this moment."""

    def __init__(self) -> None:
        self._models: dict[str, KernelModel] = {}
        self._is_known = asyncio.Event()

    def set(self, models: Iterable[KernelModel]) -> None:
        """These and no others."""
        self._models = {model.name: model for model in models}
        self._is_known.set()

    def drop(self, name: str) -> None:
        """It takes no more."""
        self._models.pop(name, None)

    async def find(self, name: str) -> KernelModel | None:
        """By name; after a start of the service, once the loop has been through all models."""
        await self._is_known.wait()
        return self._models.get(name)
