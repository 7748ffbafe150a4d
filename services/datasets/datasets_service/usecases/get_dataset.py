"""One dataset, if the caller may see it."""

from __future__ import annotations

from servicekit.errors import not_found
from servicekit.identity import current_identity

from datasets_service.domain.dataset import Dataset
from datasets_service.usecases.ports import Storage


class GetDataset:
    """404 when there is none of this name, 403 when it is another user's."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def __call__(self, name: str) -> Dataset:
        async with self._storage.snapshot() as datasets:
            dataset = await datasets.find(name)
        if dataset is None:
            raise not_found("dataset", name)
        current_identity().require_access("dataset", name, dataset.owner)
        return dataset
