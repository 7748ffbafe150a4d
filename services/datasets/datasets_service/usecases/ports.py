"""What the use cases need from outside: storage, disk and the other services."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from servicekit import jobs
from servicekit.jobs import InstanceGroup, JobFacts

from datasets_service.domain.dataset import Dataset, ImportedRecords
from datasets_service.domain.object_image import ObjectImage
from datasets_service.domain.table import TableSlice


@dataclass(frozen=True, kw_only=True)
class JobRequest(jobs.JobRequest):
    """An import as the scheduling service is asked for it."""

    kind: str = "import"
    max_restarts: int = 2
    grace_seconds: float = 5.0


@dataclass(frozen=True)
class Removal:
    """The files and the job of a dataset whose row has gone."""

    uid: str
    job_id: str


class Datasets(Protocol):
    """Stored datasets, inside one transaction."""

    async def add(self, dataset: Dataset) -> None:
        """409 when the name is taken."""

    async def find(self, name: str) -> Dataset | None:
        """The dataset of this name."""

    async def list_page(self, owner: str | None, after: str, limit: int) -> list[Dataset]:
        """The next `limit` datasets of this owner (of anybody when None) with names beyond `after`, by name."""

    async def list_active(self) -> list[Dataset]:
        """Those without a final status, oldest first."""

    async def save_state(self, dataset: Dataset) -> None:
        """Write what following the job decides (never `stop_requested`)."""

    async def request_stop(self, uid: str) -> None:
        """Write that a stop was asked for."""

    async def remove(self, dataset: Dataset) -> None:
        """Remove the row and order the removal of its files."""

    async def list_removals(self) -> list[Removal]:
        """Orders not yet carried out."""

    async def forget_removal(self, uid: str) -> None:
        """The order was carried out."""


class Storage(Protocol):
    """Makes units of work."""

    def transaction(self) -> AbstractAsyncContextManager[Datasets]:
        """Committed when the block ends well, rolled back when it raises."""

    def snapshot(self) -> AbstractAsyncContextManager[Datasets]:
        """For reading only."""


class Files(Protocol):
    """The folders of datasets on disk."""

    async def prepare(self, dataset: Dataset) -> JobRequest:
        """Write what the worker is told; the job to submit. Repeatable."""

    async def read_published(self, uid: str) -> ImportedRecords | None:
        """What an import published; None when it has not."""

    async def remove_staging(self, uid: str) -> None:
        """Remove what attempts of an import left behind."""

    async def remove(self, uid: str) -> None:
        """Remove all files of a dataset, published or not."""


class Sources(Protocol):
    """What a request may point to, looked up while its caller waits.

    Each answers an existing path, links followed; 400 naming `field` when there is none, it is of another kind, or it
    lies outside the data roots.
    """

    @property
    def roots(self) -> tuple[Path, ...]:
        """The data roots."""

    def path(self, field: str, text: str) -> Path:
        """A file or a folder."""

    def folder(self, field: str, text: str) -> Path:
        """A folder that can be listed."""

    def file(self, field: str, text: str) -> Path:
        """A regular file that can be read."""


class ObjectImages(Protocol):
    """The images of detection datasets."""

    def read(self, folder: str, start: int, length: int) -> AsyncIterator[ObjectImage]:
        """Images `start` to `start + length` of the split at `folder`, as many of them as there are.

        FileNotFoundError when it is gone.
        """


class Tables(Protocol):
    """The rows of CSV datasets."""

    async def read(self, path: str, start: int, length: int) -> TableSlice:
        """Rows `start` to `start + length` of the split at `path`, as many of them as there are.

        SliceTooLargeError when an answer cannot hold them, FileNotFoundError when the split is gone.
        """


class Jobs(Protocol):
    """The scheduling service. Every call may be repeated; 503 when the service is away."""

    async def submit(self, request: JobRequest) -> None:
        """400 when the job can never run."""

    async def get(self, job_ids: Sequence[str]) -> Mapping[str, JobFacts]:
        """The jobs that are known; unknown ids are left out."""

    async def stop(self, job_id: str) -> None:
        """404 when the job was never submitted."""

    async def delete(self, job_id: str) -> None:
        """Forget an ended job; unknown is fine."""

    async def instance_group(self, field: str, name_or_id: str) -> InstanceGroup:
        """400 naming `field` and listing the known when unknown."""


class Models(Protocol):
    """The models service."""

    async def naming(self, dataset: str) -> list[str]:
        """Names of all models, whoever's, that name this dataset."""
