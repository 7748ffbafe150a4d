"""What every importer does."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from servicekit.errors import sendable

from datasets_service.domain.dataset import Split
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.domain.request import DatasetRequest, ImportOptions
from datasets_service.usecases.ports import Sources


class ImportRefusedError(Exception):
    """The source cannot become a dataset; the message is for its owner."""


@dataclass(frozen=True)
class ImportWork:
    """Where one import works. A killed attempt leaves both folders as they are and the next one finds them so.

    `records` becomes the dataset by one rename; `scratch` is removed with the import. `progress(done, total)` may be
    called as often as one likes. `is_retry` says that an earlier attempt ended without a word.
    """

    spec: ImportSpec
    records: Path
    scratch: Path
    progress: Callable[[float, float], None]
    is_retry: bool = False

    @property
    def options(self) -> ImportOptions:
        return self.spec.options

    @property
    def data_roots(self) -> tuple[Path, ...]:
        return tuple(Path(root) for root in self.spec.data_roots)

    def published(self, relative: str) -> str:
        """What the path of `records / relative` will be."""
        return os.path.join(self.spec.target, relative)  # noqa: PTH118  the text is what the contract shows

    def start_over(self) -> None:
        """For importers that do not go on where a killed attempt stopped: forget what it wrote."""
        for folder in (self.records, self.scratch):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)


@dataclass(frozen=True)
class Description:
    """What an import made: the content of dataset.json.

    `splits` by train, val and test; `labels` in label order. `size_bytes` is of the source when it stays where it is,
    None when it is of our own files. `details` is what only this source type has.
    """

    content_hash: str
    splits: Mapping[str, Split]
    labels: list[str] = field(default_factory=list)
    mean_file: str = ""
    size_bytes: int | None = None
    unreadable_count: int = 0
    unreadable: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self, spec: ImportSpec, size_bytes: int) -> dict[str, Any]:
        """With what the request says; `size_bytes` is of our own files."""
        values = asdict(self)
        return {
            "name": spec.name,
            "uid": spec.uid,
            "type": str(spec.source_type),
            "backend": str(spec.backend),
            **values.pop("details"),
            **values,
            # File names need not be UTF-8; databases and answers are.
            "unreadable": [sendable(name) for name in self.unreadable],
            "size_bytes": size_bytes if self.size_bytes is None else self.size_bytes,
        }


class Importer(ABC):
    """One `datasourcetype`.

    The service calls `check` in a thread while the caller waits, a job calls `run`. Modules of importers import at
    their top what the service may afford; numpy, image decoders and pandas are imported by what `run` calls.
    """

    @abstractmethod
    def check(self, request: DatasetRequest, sources: Sources) -> ImportOptions:
        """What the request means; 400 naming the field when it cannot be. Looks at folders, never into many files."""

    @abstractmethod
    def run(self, work: ImportWork) -> Description:
        """Import into `work.records`. ImportRefusedError when the source will not do.

        It may be killed anywhere and is then called again with the same folders; nobody sees `work.records` before it
        has returned.
        """
