"""Finding the images of a folder that has a folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})


def class_names(root: Path, data_roots: Sequence[Path]) -> list[str]:
    """Names of the folders of `root` that hold an image at any depth, sorted."""
    with os.scandir(root) as entries:
        folders = sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))
    return [name for name in folders if next(images_below(root / name, data_roots), None)]


def images_below(folder: Path, data_roots: Sequence[Path]) -> Iterator[str]:
    """Paths of the images below `folder`, relative to it, in a fixed order.

    Hidden files, linked folders (they may go in circles) and links that leave `data_roots` are passed over.
    """
    pending = [""]
    while pending:
        relative = pending.pop()
        with os.scandir(folder / relative) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = os.path.join(relative, entry.name)  # noqa: PTH118  a string for each of a million files
            if _is_folder(entry):
                pending.append(path)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and _is_file_inside(entry, data_roots):  # noqa: PTH122
                yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _is_file_inside(entry: os.DirEntry[str], data_roots: Sequence[Path]) -> bool:
    if not entry.is_symlink():
        return entry.is_file()
    target = Path(entry.path).resolve()
    return target.is_file() and any(target.is_relative_to(root) for root in data_roots)
