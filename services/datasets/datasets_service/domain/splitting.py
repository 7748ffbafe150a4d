"""How a source is split into training, validation and test records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from servicekit.errors import invalid

MAX_FOLDS = 100
_FOLDS = re.compile(r"k-?fold(?:[ :=(]*(\d{1,6})\s*/\s*(\d{1,6})\)?)?")

Stratum = TypeVar("Stratum", int, str)


class SplitMethod(StrEnum):
    """What `imagedetail.splitalgorithm` may begin with."""

    HOLD_OUT = "hold-out"
    RANDOM = "random"
    K_FOLD = "k-fold"
    BY_NAME = "by-name"


@dataclass(frozen=True)
class SplitAlgorithm:
    """Hold-out takes its percentage of every label, random of all images together; both by a seeded hash, so an image
    stays on its side when others come or go. K-fold validates on fold `fold` of `folds` (from 1), also stratified.
    By-name asks the file's own path for the words train, val and test.
    """

    method: SplitMethod = SplitMethod.HOLD_OUT
    fold: int = 0
    folds: int = 0

    @classmethod
    def parse(cls, text: str) -> SplitAlgorithm:
        """Empty text means hold-out; `k-fold 2/5` is the second of five folds, `k-fold` the first of five."""
        plain = text.strip().casefold().replace("_", "-")
        if match := _FOLDS.fullmatch(plain):
            fold, folds = int(match[1] or 1), int(match[2] or 5)
            if not (2 <= folds <= MAX_FOLDS and 1 <= fold <= folds):
                raise invalid(
                    "imagedetail.splitalgorithm", text, f"k-fold F/K with 2 to {MAX_FOLDS} folds K and F from 1 to K"
                )
            return cls(SplitMethod.K_FOLD, fold, folds)
        for method in SplitMethod:
            if plain.replace("-", "") == method.replace("-", ""):
                return cls(method)
        if plain:
            raise invalid("imagedetail.splitalgorithm", text, ["hold-out", "random", "k-fold F/K", "by-name"])
        return cls()

    def __str__(self) -> str:
        return f"{self.method} {self.fold}/{self.folds}" if self.folds else str(self.method)


def shares(sizes: Mapping[Stratum, int], percentage: int, taken: Mapping[Stratum, int]) -> dict[Stratum, int]:
    """How many records of each stratum a split gets: its percentage, largest remainders making up the total.

    What other splits have `taken` is not given again, and one record at least stays for training.
    """
    if percentage == 0:
        return dict.fromkeys(sizes, 0)
    room = {stratum: max(0, size - taken[stratum] - 1) for stratum, size in sizes.items()}
    counts = {stratum: min(room[stratum], size * percentage // 100) for stratum, size in sizes.items()}
    missing = max(1, (sum(sizes.values()) * percentage + 50) // 100) - sum(counts.values())
    for stratum in sorted(sizes, key=lambda one: (-(sizes[one] * percentage % 100), one)):
        if missing > 0 and counts[stratum] < room[stratum]:
            counts[stratum] += 1
            missing -= 1
    return counts
