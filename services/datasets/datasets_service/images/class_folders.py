"""Finding the images of a folder that has a folder a class."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_WORD_ENDS = re.compile(r"[/_\-. ]")


def class_folders(root: Path) -> list[str]:
    """Names of the folders of `root`, sorted; hidden and linked ones are passed over."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))


def has_image(folder: Path, data_roots: Sequence[Path]) -> bool:
    """Whether `images_below` would find one."""
    return next(images_below(folder, data_roots, in_order=False), None) is not None


def images_below(
    folder: Path, data_roots: Sequence[Path], *, in_order: bool = True
) -> Iterator[tuple[str, os.stat_result]]:
    """Paths of the images below `folder`, relative to it, and what they are.

    Hidden files, linked folders (they may go in circles) and links that leave `data_roots` are passed over.
    """
    pending = [""]
    while pending:
        relative = pending.pop()
        with os.scandir(folder / relative) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name) if in_order else entries:
                if entry.name.startswith("."):
                    continue
                path = os.path.join(relative, entry.name)  # noqa: PTH118  a string for each of a million files
                if _is_folder(entry):
                    pending.append(path)
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and is_file_inside(entry, data_roots):  # noqa: PTH122
                    yield path, entry.stat()


def split_in_name(path: str) -> str:
    """train, val or test: the first of their words in the folders and the name of `path`; train when there is none."""
    words = _WORD_ENDS.split(path.casefold())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train")


def split_folders(root: Path) -> dict[str, str]:
    """Split to folder name, when all folders of `root` are called after splits and training is among them."""
    names = class_folders(root)
    splits = {SPLIT_WORDS[name.casefold()]: name for name in names if name.casefold() in SPLIT_WORDS}
    return splits if len(splits) == len(names) and "train" in splits else {}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def is_file_inside(entry: os.DirEntry[str], data_roots: Sequence[Path]) -> bool:
    """Whether it is a regular file, or a link to one that lies in a data root."""
    if not entry.is_symlink():
        return entry.is_file()
    # Links that lead to themselves lead nowhere, without an error.
    target = Path(os.path.realpath(entry.path))
    return target.is_file() and any(target.is_relative_to(root) for root in data_roots)
