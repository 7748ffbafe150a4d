"""`python -m inference_service.worker.predict SPEC.json`: files in, results out, by Triton.

Batches are read, encoded and answered by a few threads, so that decoding and the forward passes overlap; what they
answered is written in order. Memory is that of a few batches, however many samples there are.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlmesh_sdk import served
from dlmesh_sdk.served import Item, Unreadable
from workerkit import Reporter

from inference_service.domain.predictions import ResultType, Sample
from inference_service.storage.specs import PredictionSpec
from inference_service.worker.answers import Answers, Model, Row
from inference_service.worker.errors import AwayError, PredictionError
from inference_service.worker.manifest import (
    PICTURES,
    TABLES,
    TEXTS,
    count_lines,
    ensure_manifest,
    find_input,
    read_manifest,
)
from inference_service.worker.pairs import compared
from inference_service.worker.programs import Program
from inference_service.worker.result_files import Position, ResultFiles
from inference_service.worker.triton_client import Client, InterruptedCallError, LateCallError

FIRST_BATCH_SIZE = 8
MAX_BATCH_SIZE = 64
# Of one request; more at once does not make it faster.
BATCH_BYTES = 16 * 1024 * 1024
THREADS = 2 + min(8, len(os.sched_getaffinity(0)))
CHECKPOINT_SECONDS = 2.0
# Of which each may take ten seconds, for a Triton that goes away between two questions.
LOOKS = 12
SUFFIXES = {"tabular": TABLES, "text": TEXTS}
Progress = Callable[[int, int, str], None]


def main(spec_file: str) -> None:
    """Predict, publish the results whole, report.

    SystemExit when it cannot be done, after a message: EX_DATAERR when it would fail again.
    """
    spec = PredictionSpec.read(spec_file)
    with Reporter.from_environment() as reporter:
        try:
            reporter.result(predict(spec, reporter.progress))
        except PredictionError as error:
            print(error, file=sys.stderr)
            sys.exit(1 if isinstance(error, AwayError) else os.EX_DATAERR)


def predict(spec: PredictionSpec, on_progress: Progress) -> dict[str, Any]:
    """Results of all samples in their order, behind those that an earlier attempt has; what the job reports.

    PredictionError when Triton stays away, or answers what is no result.
    """
    model = load_model(Path(spec.bundle))
    ensure_manifest(spec, SUFFIXES.get(model.task, PICTURES))
    with contextlib.closing(ResultFiles(Path(spec.output_dir))) as files:
        if not files.is_published:
            total = _count(spec, model)
            on_progress(files.position.samples, total, "predicting")
            _predict(spec, model, files, _Pace(files.position.samples, total, on_progress))
            files.publish()
    return summary(files.position, model.task)


def load_model(bundle: Path) -> Model:
    """The bundle's model; PredictionError when its program does not load."""
    if not (bundle / "serving.json").is_file():
        return Program()
    try:
        return served.load(bundle)
    except Exception as error:
        raise PredictionError(f"the model's program does not load: {type(error).__name__}: {error}") from error


def summary(position: Position, task: str) -> dict[str, Any]:
    """What the job reports: the best score of the first sample that has one, and what could not be read."""
    kind = ResultType.CLASSIFICATION
    if task in ("detection", "comparison"):
        kind = ResultType(task)
    elif position.has_vectors:
        kind = ResultType.VECTOR
    elif position.has_boxes:
        # Of a program, whose answers alone tell its task.
        kind = ResultType.DETECTION
    return {
        "samples": position.samples,
        "type": str(kind),
        "are_images": task not in SUFFIXES,
        "best": position.best,
        "unreadable": position.unreadable,
        "unreadable_count": position.unreadable_count,
        "reason": position.reason,
    }


@dataclass(frozen=True)
class Work:
    """One sample; `entry` is the byte of the manifest where its file's line begins, `row` its number in the file."""

    item: Item
    file: str
    entry: int
    row: int


def walk(spec: PredictionSpec, model: Model, position: Position) -> Iterator[Work]:
    """The samples behind `position`."""
    for entry, sample in read_manifest(Path(spec.manifest), position.entry):
        skipped = position.rows if entry == position.entry else 0
        for row, item in enumerate(_items(spec, model, sample)):
            if row >= skipped:
                yield Work(item, sample.file, entry, row)


def _items(spec: PredictionSpec, model: Model, sample: Sample) -> Iterator[Item]:
    """Those of a file, the last one Unreadable when the file is or becomes so."""
    try:
        path = find_input(spec, sample)
        if model.task not in SUFFIXES and path.stat().st_size > spec.max_image_bytes:
            raise ValueError(f"it has {path.stat().st_size} bytes; at most {spec.max_image_bytes} are taken")
        yield from model.items(path, sample.id)
    except (ValueError, OSError) as error:
        yield Item(sample.id, Unreadable(str(error)))


def _count(spec: PredictionSpec, model: Model) -> int:
    if model.task in SUFFIXES:
        return sum(1 for _ in walk(spec, model, Position()))
    count = count_lines(Path(spec.manifest))
    if model.task == "comparison" and count % 2:
        raise PredictionError(f"pictures are compared in pairs; {count} is an odd number")
    return count


def _predict(spec: PredictionSpec, model: Model, files: ResultFiles, pace: _Pace) -> None:
    def make_client() -> Client:
        return Client(Path(spec.address_file), spec.model_name, spec.model_version)

    answers = Answers(model, make_client, spec.threshold)
    most = _max_batch_size(make_client())
    pending: deque[tuple[Sequence[Work], Future[list[Row]]]] = deque()
    checkpointed_at = time.monotonic()
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="batch")
    try:
        works = walk(spec, model, files.position)
        while batch := list(next_batch(works, _batch_size(answers.sample_bytes, most, model.task), model)):
            pending.append((batch, pool.submit(answers, [work.item for work in batch])))
            if len(pending) >= THREADS:
                _settle(*pending.popleft(), model, files)
                pace.report(files.position.samples)
            if time.monotonic() - checkpointed_at > CHECKPOINT_SECONDS:
                files.checkpoint()
                checkpointed_at = time.monotonic()
        while pending:
            _settle(*pending.popleft(), model, files)
            pace.report(files.position.samples)
    finally:
        answers.is_given_up.set()
        pool.shutdown(wait=False, cancel_futures=True)
        answers.close()
        pool.shutdown()


def _settle(batch: Sequence[Work], answer: Future[list[Row]], model: Model, files: ResultFiles) -> None:
    rows = [{**row, "file": work.file} for work, row in zip(batch, answer.result(), strict=True)]
    files.append(compared(rows, model) if model.task == "comparison" else rows)
    position, last = files.position, batch[-1]
    position.entry, position.rows = last.entry, last.row + 1
    position.samples += len(batch)


def _max_batch_size(client: Client) -> int:
    """Of the model; patient, as it may be loaded just now."""
    never = threading.Event()
    words = ""
    try:
        for _ in range(LOOKS):
            client.await_model(never)
            try:
                return max(1, min(MAX_BATCH_SIZE, client.max_batch_size()))
            except (InterruptedCallError, LateCallError) as error:
                words = str(error)
    finally:
        client.close()
    raise AwayError(f"Triton does not say what the model takes: {words}")


def next_batch(works: Iterator[Work], size: int, model: Model) -> Iterator[Work]:
    """At most `size` samples; fewer where they are sent as they are and their files are large."""
    total = 0
    for work in itertools.islice(works, size):
        yield work
        if isinstance(model, Program):
            total += model.count_bytes(work.item)
            if total >= BATCH_BYTES:
                return


def _batch_size(sample_bytes: int, most: int, task: str) -> int:
    """How many samples go together; an even number where they are compared."""
    size = min(most, max(1, BATCH_BYTES // sample_bytes) if sample_bytes else FIRST_BATCH_SIZE)
    return max(2, size // 2 * 2) if task == "comparison" else size


class _Pace:
    """Progress with the rate of this attempt and the time that the rest takes at that rate."""

    def __init__(self, done: int, total: int, on_progress: Progress) -> None:
        self._begun_with, self._total, self._on_progress = done, total, on_progress
        self._begun_at = time.monotonic()

    def report(self, done: int) -> None:
        seconds = max(1e-3, time.monotonic() - self._begun_at)
        rate = (done - self._begun_with) / seconds
        left = time.strftime("%H:%M:%S", time.gmtime((self._total - done) / rate)) if rate else "?"
        self._on_progress(done, self._total, f"predicting: {rate:.0f} samples/s, {left} left")


if __name__ == "__main__":
    main(sys.argv[1])
