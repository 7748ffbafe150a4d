"""`python -m datasets_service.worker.import_dataset SPEC.json`: the job of an import.

The importer of the source type writes to a folder that nobody else sees, and that becomes the dataset by one rename: a
kill at any point leaves nothing that looks finished. The next attempt goes on where this one stopped, or finds the work
published and only reports it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workerkit import Reporter

from datasets_service.domain.import_spec import ImportSpec
from datasets_service.importers.base import ImportRefusedError, ImportWork
from datasets_service.importers.registry import importer_for

DESCRIPTION = "dataset.json"


def import_dataset(spec: ImportSpec, progress: Callable[[float, float], None]) -> dict[str, Any]:
    """Import and publish; the content of dataset.json. ImportRefusedError when the source will not do."""
    staging, target = Path(spec.staging), Path(spec.target)
    with _only_one(staging):
        if not (target / DESCRIPTION).exists():
            is_retry = (staging / "scratch").exists()
            work = ImportWork(spec, staging / "records", staging / "scratch", progress, is_retry)
            for folder in (work.records, work.scratch):
                folder.mkdir(exist_ok=True)
            description = importer_for(spec.source_type).run(work)
            content = description.to_json(spec, _size(work.records))
            (work.records / DESCRIPTION).write_text(json.dumps(content, indent=1), encoding="utf-8")
            _publish(work.records, target)
    published: dict[str, Any] = json.loads((target / DESCRIPTION).read_text(encoding="utf-8"))
    return published


@contextmanager
def _only_one(staging: Path) -> Iterator[None]:
    """An attempt that was thought dead may still be at work: wait for its end, which a kill brings about too."""
    with (staging / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _publish(records: Path, target: Path) -> None:
    """Make the folder durable, then visible."""
    for path in [*records.rglob("*"), records]:
        _sync(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    records.rename(target)
    _sync(target.parent)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(arguments: Sequence[str]) -> int:
    """The job: 0 when the dataset is published, 65 (EX_DATAERR: trying again is no use) when its source was refused."""
    spec = ImportSpec.read(Path(arguments[0]))
    with Reporter.from_environment() as reporter:
        try:
            content = import_dataset(spec, lambda done, total: reporter.progress(done, total, "import"))
        except ImportRefusedError as refusal:
            print(refusal, file=sys.stderr)
            reporter.result({"refused": str(refusal)})
            return os.EX_DATAERR
        reporter.result({key: content[key] for key in ("uid", "content_hash", "size_bytes")})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
