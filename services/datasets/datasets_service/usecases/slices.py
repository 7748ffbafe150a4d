"""What a caller asks for who reads a part of one split."""

from __future__ import annotations

from dataclasses import dataclass

from servicekit.errors import invalid, not_found

from datasets_service.domain.dataset import Dataset, Split, Status
from datasets_service.domain.words import SourceType

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


def finished_split(dataset: Dataset, source_type: SourceType, split: str) -> Split:
    """Where `split` lies: 400 unless the dataset is of `source_type` and FINISHED, 404 when it has no such split."""
    if dataset.source_type is not source_type:
        raise invalid("name", dataset.name, f"a dataset with datasourcetype {source_type}, not {dataset.source_type}")
    if dataset.status is not Status.FINISHED or dataset.records is None:
        raise invalid("name", dataset.name, f"a dataset that is FINISHED; this one is {dataset.status}")
    if split not in dataset.records.splits:
        raise not_found("split", f"{dataset.name}/{split}")
    return dataset.records.splits[split]
