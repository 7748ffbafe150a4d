"""The results of exec tasks as zip files: `$RESULT_DIR/model`, packed once its task has ended."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from servicekit.errors import sendable
from workerkit.spool import open_plain_below

from scheduling_service.storage.exec_folders import ORPHAN_SECONDS, RESULTS

COPY_BYTES = 1024 * 1024
# Weights hardly get smaller, and who waits for gigabytes of them would wait for minutes: the beginning of a file tells.
SAMPLE_BYTES, WORTHWHILE, COMPRESSION_LEVEL = 256 * 1024, 0.85, 1
# Where an elastic program keeps what it goes on from; that it has ended, nobody needs it.
ELASTIC_CHECKPOINTS = ("train", "steps")
_EARLIEST = time.struct_time((1980, 1, 1, 0, 0, 0, 0, 0, 0))


class DiskExecResults:
    """`usecases.exec_ports.ExecResults`: the zip files lie in `packed`, where programs do not come, not beside what
    they wrote in `execs`. Blocking; OSError for a disk in trouble."""

    def __init__(self, execs: Path, packed: Path, orphan_seconds: float = ORPHAN_SECONDS) -> None:
        self._execs, self._packed, self._orphan_seconds = execs, packed, orphan_seconds

    def pack(self, task_id: str, *, is_elastic: bool) -> Path:
        """The zip of what an ended task left in its results; made by the first call, whole or not at all.

        Links are packed as the files that they lead to inside of the results, and left out when they lead elsewhere.
        """
        packed = self._packed / f"{task_id}.zip"
        if packed.is_file():
            return packed
        self._packed.mkdir(exist_ok=True)
        draft = self._packed / f".{task_id}.{os.getpid()}.{secrets.token_hex(4)}"
        folder = (self._execs / task_id).resolve()
        try:
            with draft.open("xb") as writer:
                with zipfile.ZipFile(writer, "w") as archive:
                    for path, name in _files(folder / RESULTS / "model", is_elastic):
                        _add(archive, folder, path, name)
                writer.flush()
                os.fsync(writer.fileno())
            draft.replace(packed)
        finally:
            draft.unlink(missing_ok=True)
        return packed

    def remove(self, task_id: str) -> None:
        """Remove the zip, and what a kill left of one."""
        for path in [self._packed / f"{task_id}.zip", *self._packed.glob(f".{task_id}.*")]:
            path.unlink(missing_ok=True)

    def orphans(self) -> Sequence[str]:
        """Of zips and drafts that are old: one whose task was removed while it was packed is nobody's."""
        now = time.time()
        found = set()
        for path in self._packed.iterdir() if self._packed.is_dir() else ():
            with suppress(FileNotFoundError):
                if now - path.lstat().st_mtime >= self._orphan_seconds:
                    # ID.zip or .ID.PID.RANDOM
                    found.add(path.name.removeprefix(".").partition(".")[0])
        return sorted(found)


def _files(root: Path, is_elastic: bool) -> Iterator[tuple[Path, str]]:
    """Plain files below `root`, and what they are called in the zip."""
    if root.is_symlink() or root.parent.is_symlink():
        return
    real_root = root.resolve()
    for path, folders, names in os.walk(root):
        here = Path(path)
        relative = here.relative_to(root)
        folders[:] = sorted(name for name in folders if not (here / name).is_symlink())
        if is_elastic and relative.parts == ELASTIC_CHECKPOINTS[:-1]:
            folders[:] = [name for name in folders if name != ELASTIC_CHECKPOINTS[-1]]
        for name in sorted(names):
            file = here / name
            try:
                target = file.resolve(strict=True)
                if target.is_relative_to(real_root) and stat.S_ISREG(target.lstat().st_mode):
                    yield target, sendable((relative / name).as_posix())
            except (OSError, RuntimeError):
                continue


def _add(archive: zipfile.ZipFile, folder: Path, path: Path, name: str) -> None:
    try:
        file = open_plain_below(folder, path)
    except OSError:
        return
    with file:
        facts = os.fstat(file.fileno())
        changed = max(time.gmtime(facts.st_mtime), _EARLIEST)
        entry = zipfile.ZipInfo(name, changed[:6])
        is_packable = _gets_smaller(file.read(SAMPLE_BYTES))
        file.seek(0)
        entry.compress_type = zipfile.ZIP_DEFLATED if is_packable else zipfile.ZIP_STORED
        entry._compresslevel = COMPRESSION_LEVEL  # type: ignore[attr-defined]
        entry.external_attr = (stat.S_IFREG | stat.S_IMODE(facts.st_mode) & 0o755) << 16
        with archive.open(entry, "w", force_zip64=True) as target:
            shutil.copyfileobj(file, target, COPY_BYTES)


def _gets_smaller(sample: bytes) -> bool:
    return len(zlib.compress(sample, COMPRESSION_LEVEL)) < WORTHWHILE * len(sample)
