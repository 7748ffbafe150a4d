"""Batches of a prediction and a model that is slow, busy, or refuses; Triton's client is played."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dlmesh_sdk.served import Encoded, Item, Unreadable
from inference_service.storage.specs import PredictionSpec
from inference_service.worker import answers, predict
from inference_service.worker.answers import Answers
from inference_service.worker.errors import AwayError, PredictionError
from inference_service.worker.predict import BATCH_BYTES, Work, next_batch
from inference_service.worker.programs import Program
from inference_service.worker.triton_client import InterruptedCallError, LateCallError, RefusedCallError
from PIL import Image

LIMIT_SECONDS = 120


class Echo:
    """A model whose samples are numbers that come back."""

    task = "vector"

    def items(self, file: Any, name: str) -> Any:
        raise NotImplementedError

    def encode_alike(self, items: Sequence[Item]) -> list[Encoded]:
        # Those above 100 are of another shape.
        return [
            self._encoded([item for item in items if (item.value > 100) is is_high], 1 + is_high)
            for is_high in sorted({item.value > 100 for item in items})
        ]

    def _encoded(self, items: Sequence[Item], width: int) -> Encoded:
        numbers = np.array([[item.value] * width for item in items], np.float32)
        return Encoded(tuple(item.sample_id for item in items), {"INPUT__0": numbers})

    def results(self, encoded: Encoded, outputs: Any, threshold: float) -> list[dict[str, Any]]:
        rows = outputs["OUTPUT__0"].tolist()
        return [{"sampleId": name, "vector": row} for name, row in zip(encoded.sample_ids, rows, strict=True)]


class FakeClient:
    """Asks `answer`, which is given the numbers."""

    def __init__(self, answer: Callable[[Any], object]) -> None:
        self._answer = answer

    def infer(self, inputs: Any, seconds: float) -> Any:
        self._answer(inputs["INPUT__0"])
        return {"OUTPUT__0": inputs["INPUT__0"]}

    def await_model(self, is_given_up: threading.Event) -> None:
        """It is there."""

    def close(self) -> None:
        """Nothing to close."""


def answers_of(answer: Callable[[Any], object], model: Any = None) -> Answers:
    return Answers(model or Echo(), lambda: FakeClient(answer), 0.0)  # type: ignore[arg-type,return-value]


def items_of(number: int) -> list[Item]:
    return [Item(f"s{each}", each) for each in range(number)]


def test_nobody_is_blamed_for_a_late_answer() -> None:
    def late(_: Any) -> None:
        raise LateCallError("Deadline Exceeded")

    with pytest.raises(PredictionError, match="4 samples from s0 to s3: it is busy with other requests, or hangs"):
        answers_of(late)(items_of(4))


def test_the_tries_of_a_batch_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count(step=100.0)
    monkeypatch.setattr("inference_service.worker.answers.time.monotonic", lambda: next(seconds))
    monkeypatch.setattr(answers, "PATIENCE_SECONDS", 1000.0)
    calls = []

    def dies(numbers: Any) -> None:
        calls.append(len(numbers))
        raise InterruptedCallError("it was ended")

    with pytest.raises(PredictionError, match="did not answer for 1000 s"):
        answers_of(dies)(items_of(8))
    # Some of 2 + 1 + 2 + ... tries.
    assert 2 < len(calls) < 10


def test_what_the_model_refuses_of_one_sample_is_that_samples_error() -> None:
    def choosy(numbers: Any) -> None:
        if (numbers == 2).any():
            raise RefusedCallError("allowed are numbers from 3")

    rows = answers_of(choosy)(items_of(4))
    assert [row["sampleId"] for row in rows if "vector" in row] == ["s0", "s1", "s3"]
    assert "allowed are numbers from 3" in rows[2]["error"]


def test_samples_that_are_refused_and_samples_that_end_the_process_are_counted_apart() -> None:
    def choosy(numbers: Any) -> None:
        if (numbers < 30).any():
            raise RefusedCallError("allowed are numbers from 30")
        if (numbers == 30).any():
            raise InterruptedCallError("it was ended")

    asked = answers_of(choosy)
    asked([Item("first", 31)])
    rows = asked(items_of(32))
    assert [("allowed are" in row.get("error", ""), "ended on it" in row.get("error", "")) for row in rows] == [
        *[(True, False)] * 30,
        (False, True),
        (False, False),
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RefusedCallError("no"),
            "the model refused 21 samples and answered none; at the last the model failed on it: no",
        ),
        (
            InterruptedCallError("gone"),
            "21 samples ended the model's process, each tried alone; at the last the process",
        ),
    ],
)
def test_a_model_that_does_nothing_else_fails_the_prediction(error: Exception, words: str) -> None:
    def fails(_: Any) -> None:
        raise error

    with pytest.raises(PredictionError, match=words):
        answers_of(fails)(items_of(64))


def test_samples_of_several_shapes_keep_their_order() -> None:
    items = [Item(f"s{number}", number) for number in (1, 101, 2, 102)]
    rows = answers_of(lambda _: None)(items)
    assert rows == [
        {"sampleId": f"s{number}", "vector": [float(number)] * width}
        for number, width in ((1, 1), (101, 2), (2, 1), (102, 2))
    ]


def test_a_slow_model_is_not_asked_for_more_than_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "QUICK_SECONDS", -1.0)
    lock, pause = threading.Lock(), threading.Event()
    now, most = 0, 0

    def slow(_: Any) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        pause.wait(0.02)
        with lock:
            now -= 1

    asked = answers_of(slow)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(asked, [items_of(2)] * 16))) == 16
    assert most == answers.FEW_CALLS


def test_a_quick_model_is_asked_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "QUICK_SECONDS", LIMIT_SECONDS)
    meeting: list[threading.Barrier] = []
    asked = answers_of(lambda _: meeting and meeting[0].wait(LIMIT_SECONDS))
    for _ in range(4):
        asked(items_of(1))
    meeting.append(threading.Barrier(6))
    with ThreadPoolExecutor(6) as pool:
        assert len(list(pool.map(asked, [items_of(1)] * 6))) == 6


def test_batches_of_programs_are_measured_in_bytes(tmp_path: Path) -> None:
    works = []
    for number in range(5):
        file = tmp_path / str(number)
        with file.open("wb") as stream:
            stream.truncate(BATCH_BYTES // 2)
        works.append(Work(Item(str(number), file), str(number), 0, 0))
    works.append(Work(Item("gone", Unreadable("it is empty")), "gone", 0, 0))
    rest = iter(works)
    batches = [[work.item.sample_id for work in next_batch(rest, 64, Program())] for _ in range(4)]
    assert batches == [["0", "1"], ["2", "3"], ["4", "gone"], []]
    # Others are sent as tensors, whatever their files have.
    assert len(list(next_batch(iter(works), 64, Echo()))) == 6


def test_bytes_of_encoded_pictures_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.effect_noise((80, 60), 90).save(file)
    asked = Answers(Program(), lambda: FakeClient(lambda _: None), 0.0)  # type: ignore[arg-type,return-value]
    with pytest.raises(KeyError):
        asked([Item("x", file)])
    assert asked.sample_bytes == file.stat().st_size


def test_unreadable_samples_of_programs_say_why() -> None:
    assert Program().encode([Item("x", Unreadable("it is empty"))]).errors == {"x": "it is empty"}


@pytest.mark.parametrize(("error", "code"), [(PredictionError("odd"), 65), (AwayError("no Triton"), 1)])
def test_only_what_may_pass_is_tried_again(
    error: PredictionError,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setenv("DLMESH_JOB_DIR", str(tmp_path))
    monkeypatch.setattr(predict, "predict", fails)
    spec = PredictionSpec("m", 1, "b", "a", "i", (), "manifest", "o", 0.0, 1)
    spec.write(tmp_path / "spec.json")
    with pytest.raises(SystemExit) as caught:
        predict.main(str(tmp_path / "spec.json"))
    assert caught.value.code == code
    assert str(error) in capsys.readouterr().err
