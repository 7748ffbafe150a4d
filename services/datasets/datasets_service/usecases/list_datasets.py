"""The datasets that the caller may see."""

from __future__ import annotations

from servicekit.identity import current_identity

from datasets_service.domain.dataset import Dataset
from datasets_service.usecases.ports import Storage


class ListDatasets:
    """By name."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def __call__(self) -> list[Dataset]:
        identity = current_identity()
        async with self._storage.snapshot() as datasets:
            return [dataset for dataset in await datasets.list_all() if identity.may_access(dataset.owner)]
