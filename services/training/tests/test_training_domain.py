"""Which move is legal."""

from __future__ import annotations

import pytest
from servicekit.jobs import JobFacts
from training_fakes import make_training, make_validation
from training_service.domain.runs import Status, percent


def job(state: str, **facts: object) -> JobFacts:
    return JobFacts("j", state, **facts)  # type: ignore[arg-type]


def test_a_training_runs_and_finishes() -> None:
    training = make_training()
    assert training.follow(job("SUBMITTED", reason="waiting for 2 slots"))
    assert (training.status, training.status_message) == (Status.SUBMITTED, "waiting for 2 slots")
    assert training.follow(job("RUNNING", done=50, total=200, driver_id="d1"))
    assert (training.status, training.progress, training.driver_id) == (Status.RUNNING, 25, "d1")
    assert training.status_message == ""
    assert not training.follow(job("RUNNING", done=50, total=200, driver_id="d1"))
    training.follow(job("RUNNING", done=200, total=200))
    assert training.progress == 99
    training.follow(job("FINISHED"))
    assert (training.status, training.progress) == (Status.FINISHED, 100)


def test_progress_does_not_go_back_over_a_restart() -> None:
    training = make_training()
    training.follow(job("RUNNING", done=60, total=100))
    training.follow(job("RUNNING", done=40, total=100))
    assert training.progress == 60


@pytest.mark.parametrize(
    ("facts", "status", "message"),
    [
        (job("ERROR", reason="rank 1: exit 1", log_tail="Error: no\n"), Status.FAILED, "rank 1: exit 1\nError: no"),
        (job("KILLED", reason="stopped by alice"), Status.STOPPED, "stopped by alice"),
        (None, Status.FAILED, "the scheduling service no longer knows the job of this run"),
    ],
)
def test_other_ends(facts: JobFacts | None, status: Status, message: str) -> None:
    training = make_training()
    training.follow(facts)
    assert (training.status, training.status_message) == (status, message)


@pytest.mark.parametrize("final", ["FINISHED", "ERROR", "KILLED"])
@pytest.mark.parametrize("later", ["SUBMITTED", "RUNNING", "FINISHED", "ERROR", "KILLED"])
def test_a_final_status_never_changes(final: str, later: str) -> None:
    training = make_training()
    training.follow(job(final))
    before = training.status
    assert not training.follow(job(later, done=1, total=2))
    assert training.status is before


def test_a_validation_needs_its_result() -> None:
    validation = make_validation()
    validation.follow(job("FINISHED", result={"pairs": [{"name": "Top1", "value": "0.98"}]}))
    assert (validation.status, validation.pairs) == (Status.FINISHED, [("Top1", "0.98")])
    without = make_validation()
    without.follow(job("FINISHED"))
    assert without.status is Status.FAILED
    assert "without reporting a result" in without.status_message


def test_percent() -> None:
    assert [percent(*pair) for pair in [(0, 0), (1, 3), (5, 4), (-1, 4)]] == [0, 33, 100, 0]
