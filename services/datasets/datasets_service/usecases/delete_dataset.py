"""Remove a dataset, never its source."""

from __future__ import annotations

from collections.abc import Callable

from servicekit.errors import conflict, in_use

from datasets_service.usecases.get_dataset import GetDataset
from datasets_service.usecases.ports import Models, Storage


class DeleteDataset:
    """409 while it is imported or a model names it.

    The row goes and the removal of the files is ordered in one transaction, so no kill leaves half a dataset visible.
    """

    def __init__(self, storage: Storage, get_dataset: GetDataset, models: Models, wake: Callable[[], None]) -> None:
        self._storage, self._get_dataset = storage, get_dataset
        self._models, self._wake = models, wake

    async def __call__(self, name: str) -> None:
        dataset = await self._get_dataset(name)
        if not dataset.status.is_final:
            raise conflict(
                f"dataset {name!r} is being imported; stop it first",
                reason="IN_USE",
                metadata={"kind": "dataset", "name": name},
            )
        if models := await self._models.naming(name):
            raise in_use("dataset", name, f"model {', '.join(models)}")
        async with self._storage.transaction() as datasets:
            await datasets.remove(dataset)
        self._wake()
