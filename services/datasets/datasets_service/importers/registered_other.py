"""OTHER: whatever a program of the user reads."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from datasets_service.domain.dataset import Split
from datasets_service.images.class_folders import is_file_inside
from datasets_service.importers.base import Description, ImportRefusedError, ImportWork
from datasets_service.importers.registered import RegisteredImporter, listed_labels, registered_paths

CHUNK_BYTES = 4 * 1024 * 1024


class OtherImporter(RegisteredImporter):
    """A split is any file or folder; its files are counted and their bytes hashed."""

    def missing_in(self, path: Path) -> str:
        return "" if path.is_file() or any(path.iterdir()) else "a file, or a folder that is not empty"

    def run(self, work: ImportWork) -> Description:
        paths = registered_paths(work.options)
        try:
            total = sum(file.stat().st_size for path in paths.values() for file in _files(path, work.data_roots))
            digest, done = hashlib.sha256(), 0
            counts: dict[str, Counter[str]] = {}
            for split, path in paths.items():
                counts[split] = Counter()
                for file in _files(path, work.data_roots):
                    counts[split][file.relative_to(path.parent).parts[1] if file.parent != path.parent else ""] += 1
                    digest.update(os.fsencode(f"{split} {file.relative_to(path.parent)} {file.stat().st_size}\n"))
                    with file.open("rb") as content:
                        while chunk := content.read(CHUNK_BYTES):
                            digest.update(chunk)
                            done += len(chunk)
                            work.progress(min(done, total), total)
                if not counts[split]:
                    raise ImportRefusedError(f"{path} holds no file")
        except OSError as error:
            raise ImportRefusedError(f"{error.filename} cannot be read: {error.strerror}") from error
        # labels.txt tells of labels only where the data lies in folders that are called so.
        labels = listed_labels(work)
        if not any(set(labels) & count.keys() for count in counts.values()):
            labels = []
        return Description(
            digest.hexdigest(),
            {
                split: Split(str(paths[split]), count.total(), {label: count[label] for label in labels})
                for split, count in counts.items()
            },
            labels,
            mean_file=work.options.mean_file,
            size_bytes=total,
        )


def _files(path: Path, roots: tuple[Path, ...]) -> Iterator[Path]:
    """Regular files at any depth, by name; linked folders and links that leave the data roots are passed over."""
    if path.is_file():
        yield path
        return
    with os.scandir(path) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), roots)
        elif is_file_inside(entry, roots):
            yield Path(entry.path)
