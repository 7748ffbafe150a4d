"""What studies read of their trials while they run, and after."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.training.v1 import metrics_pb2, trials_pb2
from servicekit.identity import Identity
from testkit.services import acting_as
from training_room import Room, refused
from training_service.domain.runs import Training
from training_service.storage.trials import SqlTrials
from training_service.usecases import read_trials
from trial_room import read, start, stored, trials_of
from workerkit import trial_results
from workerkit.spool import append_metrics


async def record(room: Room, trial_id: str, series: str, values: dict[int, float], attempt: int = 1) -> None:
    points = [metrics_pb2.MetricPoint(series=series, step=step, value=value) for step, value in values.items()]
    with acting_as(Identity.service("scheduling")):
        await room.metrics.RecordMetrics(
            metrics_pb2.RecordMetricsRequest(job_id=trial_id, attempt=attempt, points=points)
        )


def series_of(trial: Any) -> list[str]:
    return [curve.series for curve in trial.curves]


async def test_long_curves_are_thinned_and_keep_what_counts(room: Room) -> None:
    trial_id, dice = await start(room), random.Random(7)
    values = {step: dice.random() for step in range(0, 5000, 5)}
    values |= {1235: -9.0, 2345: 9.0}
    await record(room, trial_id, "test_loss", values)
    room.jobs.move(trial_id, "RUNNING")
    [curve] = (await read(room, trial_id))[trial_id].curves
    assert len(curve.steps) == len(curve.values) <= 100
    assert [values[step] for step in curve.steps] == list(curve.values)
    assert list(curve.steps) == sorted(curve.steps)
    assert (curve.steps[0], curve.steps[-1]) == (0, 4995)
    assert (min(curve.values), max(curve.values)) == (-9.0, 9.0)


async def test_what_an_attempt_discarded_does_not_count(room: Room) -> None:
    trial_id = await start(room)
    await record(room, trial_id, "test_loss", {1: 0.5, 2: 0.25, 3: 0.125})
    await record(room, trial_id, "once", {3: 1.0})
    await record(room, trial_id, "test_loss", {2: 0.75}, attempt=2)
    [curve] = (await read(room, trial_id))[trial_id].curves
    assert (curve.series, list(curve.steps), list(curve.values)) == ("test_loss", [1, 2], [0.5, 0.75])


async def test_named_series_come_first_and_others_up_to_a_number(room: Room) -> None:
    trial_id = await start(room)
    for number in range(120):
        await record(room, trial_id, f"s{number:03}", {1: float(number)})
    found = (await read(room, trial_id, series=["s119", "none", "s005"]))[trial_id]
    assert (len(found.curves), series_of(found)[:4]) == (100, ["s119", "s005", "s000", "s001"])
    found = (await read(room, trial_id, series=["s119", "s005"], only_these_series=True))[trial_id]
    assert series_of(found) == ["s119", "s005"]
    assert series_of((await read(room, trial_id, only_these_series=True))[trial_id]) == []


async def test_several_trials_are_answered_in_order_and_as_far_as_there_is_room(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial_ids = [await start(room) for _ in range(3)]
    for trial_id in trial_ids:
        await record(room, trial_id, "loss", {1: 0.5})
    asked = [trial_ids[2], "0" * 32, trial_ids[0], trial_ids[2], trial_ids[1]]
    assert list(await read(room, *asked)) == [trial_ids[2], trial_ids[0], trial_ids[1]]
    monkeypatch.setattr(read_trials, "MAX_ANSWER_BYTES", 2 * read_trials.CURVE_BYTES)
    answer = await trials_of(room).ReadTrialMetrics(trials_pb2.ReadTrialMetricsRequest(trial_ids=asked))
    assert [trial.trial_id for trial in answer.trials] == [trial_ids[2]]
    assert list(answer.unread_trial_ids) == [trial_ids[0], trial_ids[1]]
    monkeypatch.undo()
    # Who asks waits only so long: at least one, and nothing twice.
    monkeypatch.setattr(read_trials, "READ_SECONDS", 0.0)
    answer = await trials_of(room).ReadTrialMetrics(trials_pb2.ReadTrialMetricsRequest(trial_ids=asked))
    assert [trial.trial_id for trial in answer.trials] == [trial_ids[2]]
    assert list(answer.unread_trial_ids) == [trial_ids[0], trial_ids[1]]
    assert list(await read(room, *asked)) == [trial_ids[2], trial_ids[0], trial_ids[1]]
    for wrong in ("x", "../.."):
        assert (await refused(read(room, wrong)))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert (await refused(read(room, *["0" * 32] * 10_001)))[0] is grpc.StatusCode.INVALID_ARGUMENT
    for seconds in (-1.0, 11.0, float("nan")):
        assert (await refused(read(room, wait_seconds=seconds)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_a_program_wrote_for_its_study_is_read_as_far_as_it_is_a_file(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_results, "MAX_RESULTS_BYTES", 10)
    trial_id = await start(room)
    file = tmp_path / "trainings" / trial_id / trial_results.RESULTS_FILE

    async def results() -> tuple[str, str]:
        found = (await read(room, trial_id, with_results=True))[trial_id]
        return found.results, found.results_error

    assert await results() == ("", "")
    file.write_bytes(b"[1, \xff]")
    assert await results() == ("[1, \ufffd]", "")
    assert (await read(room, trial_id))[trial_id].results == ""
    file.write_bytes(b"x" * 11)
    assert await results() == ("", "val_dict_list.json is larger than 10 bytes")
    for make in (
        lambda: os.mkfifo(file),
        lambda: file.symlink_to("/etc/hostname"),
        lambda: file.mkdir(),
    ):
        file.unlink()
        make()
        assert await results() == ("", "")
    assert (await read(room, trial_id))[trial_id].results == ""


async def test_a_trial_is_settled_when_all_that_was_spooled_is_read(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    known = SqlTrials.known

    async def counted(self: SqlTrials, uids: Sequence[str]) -> Mapping[str, Training]:
        looks.append(uids)
        return await known(self, uids)

    monkeypatch.setattr(SqlTrials, "known", counted)
    trial_id = await start(room)
    folder = tmp_path / "jobs" / trial_id / "attempt-1"
    folder.mkdir(parents=True)
    append_metrics(folder, {"loss": 0.5}, 1)
    assert not (await read(room, trial_id))[trial_id].is_settled
    # It runs: what has not ended is not waited for, nor what nobody can tell.
    room.jobs.move(trial_id, "RUNNING", reason="busy", run_directory=str(folder))
    asks = len(looks)
    running = (await read(room, trial_id, wait_seconds=10.0))[trial_id]
    assert (running.is_settled, list(running.curves), len(looks)) == (False, [], asks + 1)
    room.jobs.is_away = True
    assert not (await read(room, trial_id, wait_seconds=10.0))[trial_id].is_settled
    room.jobs.is_away = False
    room.jobs.move(trial_id, "ERROR", reason="rank 0 exited with 1", run_directory=str(folder))

    async def settled() -> Any:
        found = (await read(room, trial_id, wait_seconds=10.0))[trial_id]
        # Never one without the other.
        assert found.is_settled == (series_of(found) == ["loss"])
        return found if found.is_settled else None

    await room.until(settled)
    trial = await stored(room, trial_id)
    assert (trial.status, trial.status_message) == ("FAILED", "rank 0 exited with 1")


async def test_series_that_are_no_numbers_any_more_are_named(room: Room) -> None:
    trial_id = await start(room)
    await record(room, trial_id, "test_loss", {1: 0.5})

    async def odd(*series: str) -> Any:
        found = (await read(room, trial_id, wait_seconds=10.0))[trial_id]
        return found if list(found.not_finite_series) == [*series] else None

    assert await odd()
    room.jobs.move(trial_id, "RUNNING", not_finite_series=("test_loss", "grad_norm"))
    assert not (await room.until(lambda: odd("test_loss", "grad_norm"))).is_settled
    # One came back; the last word is that of the job that has ended.
    room.jobs.move(trial_id, "FINISHED", not_finite_series=("grad_norm",))

    async def settled() -> Any:
        found = (await read(room, trial_id, wait_seconds=10.0))[trial_id]
        return found if found.is_settled else None

    assert list((await room.until(settled)).not_finite_series) == ["grad_norm"]
