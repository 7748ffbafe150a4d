"""Ask for the end of an import."""

from __future__ import annotations

from collections.abc import Callable

from datasets_service.usecases.get_dataset import GetDataset
from datasets_service.usecases.ports import Storage


class StopDataset:
    """Writes the intent; following the imports carries it out. Stopping what has ended changes nothing."""

    def __init__(self, storage: Storage, get_dataset: GetDataset, wake: Callable[[], None]) -> None:
        self._storage, self._get_dataset, self._wake = storage, get_dataset, wake

    async def __call__(self, name: str) -> None:
        dataset = await self._get_dataset(name)
        if dataset.status.is_final:
            return
        async with self._storage.transaction() as datasets:
            await datasets.request_stop(dataset.uid)
        self._wake()
