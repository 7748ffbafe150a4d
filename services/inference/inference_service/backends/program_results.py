"""Takes the result files of programs apart, as `inference_helper` writes them. Copied into the model repository."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

MAX_BYTES = 64 * 1024 * 1024
KINDS = ("classification", "detection", "vector")


class JunkError(Exception):
    """What the program wrote is no result; the text says why."""


def read_results(file: Path, names: Sequence[str], labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By name (of the file in the program's input folder) `{"scores": [...]}`, the most probable first, or `{"vector":
    [...]}`; a name that the program answered nothing for has an `{"error"}`. JunkError.

    A score has `index` and `label`, `prob`, and for detection `bbox` [xmin, ymin, xmax, ymax]. `labels` are those of
    the dataset; a label that is none of them has the index that it says, if it is a number, else -1.
    """
    document = _read(file)
    kind = document.get("type")
    entries = document.get("result")
    if kind not in KINDS or not isinstance(entries, list):
        raise JunkError(
            f"the type of its result file is {json.dumps(kind)[:100]} with a result; known: {', '.join(KINDS)}"
        )
    # Some programs name samples without the suffix, or with the whole path.
    known = {PurePath(name).stem: name for name in names} | {name: name for name in names}
    indices = {label: index for index, label in reversed(list(enumerate(labels)))}
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise JunkError(f"an entry of its result is {json.dumps(entry)[:100]}, no object")
        name = known.get(PurePath(str(entry.get("sampleId"))).name)
        if name is None:
            raise JunkError(
                f"its result has the sampleId {json.dumps(entry.get('sampleId'))[:100]}, which it was not given"
            )
        if kind == "vector":
            found[name] = {"vector": _numbers(entry.get("vector"), "vector")}
        else:
            found.setdefault(name, {"scores": []})["scores"].append(_score(entry, kind, indices))
    for each in found.values():
        if "scores" in each:
            each["scores"].sort(key=lambda score: -score["prob"])
    nothing: dict[str, Any] = {"error": "inference.py answered nothing for it"}
    if kind == "detection":
        # No object is an answer.
        nothing = {"scores": []}
    return {name: found.get(name, nothing) for name in names}


def read_part(file: Path, most_bytes: int, *, end: bool = False) -> bytes:
    """The beginning, or the end, of a file that may be anything that a program put there; OSError when not regular."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as content:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(f"{file.name} is no regular file")
        if end:
            content.seek(max(0, facts.st_size - most_bytes))
        return content.read(most_bytes)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_part(file, MAX_BYTES + 1)
    except FileNotFoundError:
        raise JunkError("it wrote no result file") from None
    except OSError as error:
        raise JunkError(f"its result file cannot be read: {error}") from error
    if len(content) > MAX_BYTES:
        raise JunkError(f"its result file has more than {MAX_BYTES} bytes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise JunkError(f"its result file is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise JunkError("its result file is no JSON object")
    return document


def _score(entry: Mapping[str, Any], kind: str, indices: Mapping[str, int]) -> dict[str, Any]:
    label = str(entry.get("label"))
    index = indices.get(label, int(label) if label.isascii() and label.isdigit() and len(label) < 10 else -1)
    [probability] = _numbers([entry.get("prob")], "prob")
    score = {"index": index, "label": label, "prob": probability}
    if kind == "detection":
        box = entry.get("bbox")
        edges = _numbers(box.split(",") if isinstance(box, str) else box, "bbox")
        if len(edges) != 4:
            raise JunkError(f"a bbox of its result has {len(edges)} numbers, not 4")
        score["bbox"] = edges
    return score


def _numbers(values: Any, field: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise JunkError(f"{field} of its result is {json.dumps(values)[:100]}, no numbers") from None
    if not all(map(math.isfinite, numbers)):
        raise JunkError(f"{field} of its result has a number that is not finite")
    return numbers
