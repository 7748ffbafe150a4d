"""Which image goes into which split: the same for the same files and seed, whatever else changes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence


def hold_out(
    images: Mapping[str, Sequence[str]], percentages: Mapping[str, int], seed: int
) -> dict[str, dict[str, list[str]]]:
    """Split each label's images: {split: {label: images}} for train and each of `percentages` (of all images).

    Every label gives its share (largest remainders make up the total), and keeps at least one image for training.
    """
    shuffled = {label: sorted(paths, key=lambda path: _rank(seed, label, path)) for label, paths in images.items()}
    taken = dict.fromkeys(images, 0)
    splits: dict[str, dict[str, list[str]]] = {}
    for split, percentage in percentages.items():
        counts = _shares({label: len(paths) for label, paths in shuffled.items()}, percentage, taken)
        splits[split] = {}
        for label, count in counts.items():
            splits[split][label] = shuffled[label][taken[label] : taken[label] + count]
            taken[label] += count
    return {"train": {label: paths[taken[label] :] for label, paths in shuffled.items()}, **splits}


def in_random_order(records: Sequence[tuple[int, str]], seed: int) -> list[tuple[int, str]]:
    """(label index, path) mixed, so that readers who read in sequence see all labels."""
    return sorted(records, key=lambda record: _rank(seed, str(record[0]), record[1]))


def _shares(sizes: Mapping[str, int], percentage: int, taken: Mapping[str, int]) -> dict[str, int]:
    if percentage == 0:
        return dict.fromkeys(sizes, 0)
    room = {label: max(0, size - taken[label] - 1) for label, size in sizes.items()}
    counts = {label: min(room[label], size * percentage // 100) for label, size in sizes.items()}
    missing = max(1, (sum(sizes.values()) * percentage + 50) // 100) - sum(counts.values())
    for label in sorted(sizes, key=lambda label: -(sizes[label] * percentage % 100)):
        if missing > 0 and counts[label] < room[label]:
            counts[label] += 1
            missing -= 1
    return counts


def _rank(seed: int, label: str, path: str) -> bytes:
    return hashlib.sha256(os.fsencode(f"{seed}\0{label}\0{path}")).digest()
