"""The names of what is to be predicted: written once, in order, and read from any place on."""

from __future__ import annotations

import heapq
import itertools
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from inference_service.domain.predictions import Sample
from inference_service.storage.specs import PredictionSpec, write_manifest
from inference_service.worker.errors import AwayError, PredictionError

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
TABLES = frozenset({".csv"})
TEXTS = frozenset({".csv", ".txt"})
# So many names are in memory at most while a folder is walked.
SORTED_NAMES = 100_000


def ensure_manifest(spec: PredictionSpec, suffixes: frozenset[str]) -> None:
    """Write the manifest of what lies below `input_dir`, in the order of the names, unless there is one.

    PredictionError when there is nothing to predict. From now on the names are frozen: what is added is not predicted.
    """
    file = Path(spec.manifest)
    if file.exists():
        return
    path = Path(spec.input_dir)
    try:
        with tempfile.TemporaryDirectory(prefix="names-", dir=file.parent) as scratch, ExitStack() as stack:
            names = _sorted(_walk(path, suffixes, spec.roots), Path(scratch), stack)
            first = next(names, None)
            if first is None:
                raise PredictionError(f"{path} holds no file that ends with {', '.join(sorted(suffixes))}")
            write_manifest(file, (Sample(name, name) for name in itertools.chain([first], names)))
    except OSError as error:
        raise AwayError(f"{path} cannot be read: {error}") from error


def read_manifest(file: Path, offset: int = 0) -> Iterator[tuple[int, Sample]]:
    """Each sample and the byte at which its line begins, from the line at byte `offset` on."""
    with file.open("rb") as stream:
        stream.seek(offset)
        while line := stream.readline():
            name, relative = json.loads(line)
            yield offset, Sample(name, relative)
            offset += len(line)


def count_lines(file: Path) -> int:
    """How many files the manifest names."""
    with file.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))


def find_input(spec: PredictionSpec, sample: Sample) -> Path:
    """The sample's file; ValueError with the reason when it is no plain file, is empty or leads out of the roots.

    Folders of users change while they are read: a pipe would be waited for, a link may lead anywhere.
    """
    path = Path(os.path.realpath(Path(spec.input_dir) / sample.file))
    if not any(path.is_relative_to(root) for root in spec.roots):
        raise ValueError("it lies outside of the data roots")
    try:
        found = path.stat()
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is not a file")
    if found.st_size == 0:
        raise ValueError("it is empty")
    return path


def _walk(root: Path, suffixes: frozenset[str], roots: Sequence[str]) -> Iterator[str]:
    """Names of the files below `root`, relative to it. Hidden ones, linked folders (they may go in circles) and links
    that lead out of the roots are passed over."""
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = os.path.join(folder, entry.name)  # noqa: PTH118  a string for each of a million files
                if entry.is_dir(follow_symlinks=False):
                    pending.append(name)
                elif os.path.splitext(entry.name)[1].lower() in suffixes and _is_inside(entry, roots):  # noqa: PTH122
                    yield name


def _is_inside(entry: os.DirEntry[str], roots: Sequence[str]) -> bool:
    if not entry.is_symlink():
        return entry.is_file()
    target = Path(os.path.realpath(entry.path))
    return target.is_file() and any(target.is_relative_to(root) for root in roots)


def _sorted(names: Iterator[str], scratch: Path, stack: ExitStack) -> Iterator[str]:
    """In order, whatever there are: sorted pieces on disk are merged."""
    pieces: list[Path] = []
    while piece := sorted(itertools.islice(names, SORTED_NAMES)):
        file = scratch / str(len(pieces))
        # As JSON: a name may hold line ends, and bytes that are no text.
        file.write_text("".join(json.dumps(name) + "\n" for name in piece))
        pieces.append(file)
    return heapq.merge(*(_lines(stack.enter_context(file.open())) for file in pieces))


def _lines(stream: Iterable[str]) -> Iterator[str]:
    for line in stream:
        name: str = json.loads(line)
        yield name
