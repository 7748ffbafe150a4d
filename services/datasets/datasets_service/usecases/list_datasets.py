"""The datasets that the caller may see."""

from __future__ import annotations

from collections.abc import AsyncIterator

from servicekit.identity import current_identity

from datasets_service.domain.dataset import Dataset
from datasets_service.usecases.ports import Storage

PAGE_DATASETS = 200


class ListDatasets:
    """By name, a page at a time: memory holds one page however many there are."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def __call__(self) -> AsyncIterator[Dataset]:
        identity = current_identity()
        owner = None if identity.is_admin or identity.is_service else identity.user
        last = ""
        while True:
            # A transaction a page: a slow reader holds none open.
            async with self._storage.snapshot() as datasets:
                page = await datasets.list_page(owner, last, PAGE_DATASETS)
            for dataset in filter(lambda one: identity.may_access(one.owner), page):
                yield dataset
            if len(page) < PAGE_DATASETS:
                return
            last = page[-1].name
