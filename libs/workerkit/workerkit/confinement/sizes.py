"""What folders of programs hold. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

# A look sees at most so many files.
DISK_FILES = 100_000


def held_bytes(folders: Iterable[Path]) -> int:
    """What the files below `folders` take on the disk; links are not followed and a file with two names counts once.

    It stops after DISK_FILES files, which is then the least that they hold.
    """
    total = seen = 0
    known: set[tuple[int, int]] = set()
    left = [str(folder) for folder in folders]
    while left and seen < DISK_FILES:
        try:
            entries = os.scandir(left.pop())
        except OSError:
            continue
        with entries:
            for entry in entries:
                seen += 1
                try:
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                        continue
                    facts = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if facts.st_nlink > 1:
                    if (facts.st_dev, facts.st_ino) in known:
                        continue
                    known.add((facts.st_dev, facts.st_ino))
                total += facts.st_blocks * 512
    return total


def describe_bytes(number: int) -> str:
    """`12 GiB`, `1.5 MiB`, `3 bytes`."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if number >= 1024**power:
            return f"{round(number / 1024**power, 1):g} {unit}"
    return f"{number} bytes"
