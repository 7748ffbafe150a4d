"""What a caller asks for who reads a part of one split."""

from __future__ import annotations

from dataclasses import dataclass

from servicekit.errors import invalid

DEFAULT_LENGTH = 100
MAX_LENGTH = 10_000
_WORDS = {"training": "train", "train": "train", "validation": "val", "val": "val", "test": "test"}


@dataclass(frozen=True)
class SliceRequest:
    """Records `start` to `start + length` of `split` (train, val or test), as many of them as there are."""

    split: str
    start: int
    length: int

    @classmethod
    def parse(cls, type_text: str, start: int | None = None, length: int | None = None) -> SliceRequest:
        """From the parameters type, start and length, None where one was not given; 400 names the wrong one."""
        split = _WORDS.get(type_text.strip().casefold())
        if split is None:
            raise invalid("type", type_text, ["training", "validation", "test"])
        start = 0 if start is None else start
        length = DEFAULT_LENGTH if length is None else length
        if start < 0:
            raise invalid("start", start, "0 or more")
        if not 1 <= length <= MAX_LENGTH:
            raise invalid("length", length, f"1 to {MAX_LENGTH}")
        return cls(split, start, length)
