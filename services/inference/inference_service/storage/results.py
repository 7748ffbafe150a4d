"""Result files of predictions, read by pages. Programs of users can write them: they may hold anything."""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from servicekit.errors import ServiceError, conflict, invalid
from workerkit.spool import open_plain_below

from inference_service.domain.predictions import PairResult, Prediction, ResultPage, ResultType, SampleResult, Score
from inference_service.storage.specs import INDEX_ENTRY_BYTES, INDEX_FILE, INDEX_STEP, MAX_LINE_BYTES, RESULT_FILE

# The gateway's answers end at 64 MiB; a line is never shorter than what becomes of it there, but for the path.
MAX_ANSWER_BYTES = 60 * 1024 * 1024
_NAMES_BYTES = 64


class _DamagedError(Exception):
    """The files are not as the worker wrote them."""


def read_page(folder: Path, prediction: Prediction, start: int, length: int | None, input_dir: str) -> ResultPage:
    """Results from number `start` on, `length` at most, of what lies in `folder`; the samples lie in `input_dir`.

    400 when they do not fit one answer; 409 when the files are gone or damaged.
    """
    is_pairs = prediction.result_type is ResultType.COMPARISON
    total = prediction.sample_count // 2 if is_pairs else prediction.sample_count
    wanted = max(0, min(total - start, total if length is None else length))
    rows: list[Any] = []
    size, path_bytes = 0, len(input_dir.encode()) + _NAMES_BYTES
    try:
        for line in itertools.islice(_lines(folder, prediction.result_file, start), wanted):
            size += len(line) + path_bytes
            if size > MAX_ANSWER_BYTES:
                shown = "all" if length is None else length
                allowed = f"what fits {MAX_ANSWER_BYTES} bytes, here some {len(rows)}: ask with start and length"
                raise invalid("length", shown, f"{allowed}, or read {prediction.result_file}")
            rows.append(_pair(json.loads(line)) if is_pairs else _sample(json.loads(line)))
        if len(rows) < wanted:
            raise _DamagedError(f"{len(rows)} results where {wanted} were written")
    except (_DamagedError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _gone(prediction, error) from error
    return ResultPage(prediction.result_type, total, input_dir, tuple(rows), prediction.are_images)


def _lines(folder: Path, name: str, start: int) -> Iterator[bytes]:
    with open_plain_below(folder, folder / "output" / name) as stream:
        if name != RESULT_FILE:
            yield from itertools.islice(_rows_of_document(stream), start, None)
            return
        stream.seek(_offset(folder, start // INDEX_STEP, stream))
        for _ in range(start % INDEX_STEP):
            _line(stream)
        while line := _line(stream):
            yield line


def _line(stream: BinaryIO) -> bytes:
    line = stream.readline(MAX_LINE_BYTES)
    if line and not line.endswith(b"\n"):
        raise _DamagedError("a line without an end")
    return line


def _offset(folder: Path, entry: int, results: BinaryIO) -> int:
    if entry == 0:
        return 0
    with open_plain_below(folder, folder / "output" / INDEX_FILE) as stream:
        stream.seek(entry * INDEX_ENTRY_BYTES)
        content = stream.read(INDEX_ENTRY_BYTES)
    if len(content) < INDEX_ENTRY_BYTES:
        return results.seek(0, 2)
    offset: int = struct.unpack("<Q", content)[0]
    results.seek(offset - 1)
    if offset < 1 or results.read(1) != b"\n":
        raise _DamagedError("its index is of another file")
    return offset


def _rows_of_document(stream: BinaryIO) -> Iterator[bytes]:
    """Of a release that wrote one JSON list."""
    for row in json.load(stream):
        kept = {"sampleId": row["sample_id"], "file": Path(row["input_path"]).name}
        scores = [
            {"index": score["index"], "label": score["label"], "prob": score["probability"]} for score in row["scores"]
        ]
        yield json.dumps(kept | ({"error": row["error"]} if row["error"] else {"scores": scores})).encode()


def _sample(row: dict[str, Any]) -> SampleResult:
    return SampleResult(
        sample_id=str(row["sampleId"]),
        file=str(row["file"]),
        scores=tuple(_score(score) for score in row.get("scores", ())),
        vector=tuple(_finite(value) for value in row.get("vector", ())),
        error=str(row.get("error", "")),
    )


def _score(score: dict[str, Any]) -> Score:
    edges = [_finite(edge) for edge in score.get("bbox", ())]
    box = ",".join(f"{edge:.10g}" for edge in edges)
    return Score(int(score["index"]), str(score["label"]), _finite(score["prob"]), box)


def _pair(row: dict[str, Any]) -> PairResult:
    return PairResult(
        first_id=str(row["sampleId1"]),
        second_id=str(row["sampleId2"]),
        file=str(row["file"]),
        distance=_finite(row.get("distance", 0.0)),
        is_similar=bool(row.get("isSimilar", False)),
        error=str(row.get("error", "")),
    )


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise _DamagedError("a number that is not finite")
    return number


def _gone(prediction: Prediction, error: Exception) -> ServiceError:
    return conflict(
        f"the results of prediction {prediction.name!r} cannot be read: {error}; predict again",
        reason="RESULTS_DAMAGED",
        metadata={"name": prediction.name},
    )
