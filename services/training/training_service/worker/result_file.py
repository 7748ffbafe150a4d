"""Reading the result file of an inference program, which may hold anything or be anything."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# 5 labels of 300 000 samples, or 100 boxes on each of 10 000 images.
MAX_BYTES = 128 * 1024 * 1024
# Squares of larger ones would not be finite.
MOST = 1e150
_SHOWN = 5

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ResultFile:
    """A result with ground truth. `rows` are what was predicted, `samples` what was to be predicted.

    Sample ids are texts; those of `samples` differ, and those of `rows` are among them.
    """

    kind: str
    rows: Sequence[Row]
    samples: Sequence[Row]


def read_result(file: Path, names: Sequence[str] | None = None) -> ResultFile:
    """The content of `file`; ValueError saying what is wrong with it.

    `names` are the samples of the split, None when they are not known. Sample ids must be exactly those, unless none of
    them is: then the program calls the samples as it likes, and only their number must be right.
    """
    document = _parse(file.name, _read(file))
    if not isinstance(document, dict) or "samples" not in document:
        raise ValueError(
            f"{file.name} has no ground truth: inference.py must pass ground_truth when --validate is true"
        )
    rows, samples = (_rows(document, part) for part in ("result", "samples"))
    _check_ids([row["sampleId"] for row in samples], {row["sampleId"] for row in rows}, names)
    return ResultFile(str(document.get("type")), rows, samples)


def probability_of(row: Row) -> float:
    """The probability of a prediction, or whatever score the program has; ValueError when it is no finite number."""
    value = row["prob"]
    if not is_finite(value):
        raise ValueError(f"sample {row['sampleId']!r}: prob {str(value)[:50]} is no finite number")
    return float(value)


def is_finite(value: Any) -> bool:
    """True for a number that can be counted with."""
    return isinstance(value, int | float) and abs(value) <= MOST


def label_of(text: Any, sample: str) -> str:
    """A label as it is written; ValueError when it is no text."""
    if not isinstance(text, str):
        raise ValueError(f"sample {sample!r}: label {text!r} is no text")
    return text


def named_labels(used: Iterable[str], labels: Sequence[str]) -> dict[str, str]:
    """The label that each of `used` means: itself, or that at its index where the program was given no names.

    ValueError for what is none of `labels`; all are known when `labels` is empty.
    """
    known, used = set(labels), set(used)
    if not labels or used <= known:
        return {label: label for label in used}
    indices = {str(index): label for index, label in enumerate(labels)}
    if used <= indices.keys():
        return {label: indices[label] for label in used}
    raise ValueError(f"labels that the dataset does not have: {listed(used - known)}; it has {listed(labels)}")


def listed(names: Iterable[str]) -> str:
    """The first few of `names`, and how many there are."""
    names = [str(name)[:80] for name in names]
    shown = ", ".join(repr(name) for name in sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} ... ({len(names)})"


def _read(file: Path) -> bytes:
    """Of a plain file in a plain folder only: what a link leads to is not the program's result."""
    try:
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # Opening a FIFO must not wait for a writer.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(file.name, flags, dir_fd=folder)
        finally:
            os.close(folder)
    except FileNotFoundError:
        raise ValueError(f"inference.py ended without writing {file.name} into --output_dir") from None
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read as a plain file in --output_dir: {error.strerror}") from error
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        os.close(descriptor)
        raise ValueError(f"{file.name} is a link or no file; inference.py must write a file")
    with os.fdopen(descriptor, "rb") as stream:
        if facts.st_size > MAX_BYTES:
            raise ValueError(f"{file.name} has {facts.st_size} bytes, allowed are {MAX_BYTES}")
        return stream.read(MAX_BYTES)


def _parse(name: str, content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error


def _rows(document: Mapping[str, Any], part: str) -> list[Row]:
    rows = document.get(part)
    if not isinstance(rows, list):
        raise ValueError(f"{part} is no list")
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("sampleId"), str):
            raise ValueError(f"{part}: {str(row)[:200]} has no sampleId")
    return rows


def _check_ids(given: Sequence[str], predicted: set[str], names: Sequence[str] | None) -> None:
    counts = Counter(given)
    if not counts:
        raise ValueError("there are no samples")
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"samples that occur more than once: {listed(repeated)}")
    if unknown := predicted - counts.keys():
        raise ValueError(f"predictions of what is no sample: {listed(unknown)}")
    if names is None:
        return
    split = set(names)
    missing, extra = split - counts.keys(), counts.keys() - split
    if missing == split:
        if len(counts) != len(split):
            raise ValueError(f"{len(counts)} samples; the split has {len(split)}")
    elif missing or extra:
        parts = [f"{what}: {listed(some)}" for what, some in (("missing", missing), ("not there", extra)) if some]
        raise ValueError(f"the samples are not those of the split; {'; '.join(parts)}")
