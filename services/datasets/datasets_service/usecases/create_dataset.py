"""Check a request field by field, then write the intent to import."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

from servicekit.errors import invalid
from servicekit.identity import current_identity
from servicekit.names import check_name
from servicekit.times import utc_now

from datasets_service.domain.dataset import Dataset
from datasets_service.domain.request import DatasetRequest, ImportOptions
from datasets_service.domain.words import SourceType, read_backend, read_word
from datasets_service.usecases.ports import Jobs, Storage

MAX_SHARDS = 10_000


class CreateDataset:
    """Nothing is written unless every field is right; then the import follows by itself.

    `check` looks at the source (it may block) and says what the request means, or 400.
    """

    def __init__(
        self,
        storage: Storage,
        check: Callable[[SourceType, DatasetRequest], ImportOptions],
        jobs: Jobs,
        wake: Callable[[], None],
    ) -> None:
        self._storage, self._check, self._jobs, self._wake = storage, check, jobs, wake

    async def __call__(self, request: DatasetRequest) -> Dataset:
        name = check_name("name", request.name)
        source_type = read_word(SourceType, "datasourcetype", request.source_type)
        backend = read_backend(source_type, request.backend)
        if not 0 <= request.shards <= MAX_SHARDS:
            raise invalid("shards", request.shards, f"0 (one) to {MAX_SHARDS}")
        dataset = Dataset(
            uid=uuid4().hex,
            name=name,
            owner=current_identity().user,
            created_at=utc_now(),
            job_id=uuid4().hex,
            source_type=source_type,
            backend=backend,
            options=await asyncio.to_thread(self._check, source_type, request),
            group=await self._jobs.instance_group("sigid", request.instance_group),
        )
        async with self._storage.transaction() as datasets:
            await datasets.add(dataset)
        self._wake()
        return dataset
