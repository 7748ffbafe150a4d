"""What a job goes through: retries, losses, resizes, suspensions, and which moves are illegal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from scheduling_service.domain.job import MAX_PLATFORM_LOSSES, Job, Spec, State
from servicekit.errors import ServiceError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job(max_restarts: int = 0) -> Job:
    return Job("j", Spec("n", "training", "ann", 1, ["true"], max_restarts=max_restarts), "g", NOW)


def test_program_failures_are_retried_as_often_as_asked_then_an_error() -> None:
    it = job(max_restarts=1)
    it.start(1, NOW)
    it.fail_program("rank 0 exited with code 3", NOW + timedelta(seconds=1), NOW)
    assert (it.state, it.attempt) == (State.SUBMITTED, 1)
    assert it.reason == "rank 0 exited with code 3; restart 1 of 1"
    assert it.wait("waits for 1 of 2 slots")
    assert not it.wait("waits for 1 of 2 slots")
    assert it.wait("pauses 2 s before it is started again")
    assert it.waits_because == "pauses 2 s before it is started again"
    it.start(1, NOW)
    # While the second attempt runs it says why there is one.
    assert (it.reason, it.waits_because) == ("rank 0 exited with code 3; restart 1 of 1", "")
    it.fail_program("rank 0 exited with code 3", NOW, NOW)
    assert (it.state, it.reason, it.ended_at) == (
        State.ERROR,
        "rank 0 exited with code 3; no restart is left of 1",
        NOW,
    )


def test_a_final_failure_is_not_retried() -> None:
    it = job(max_restarts=2)
    it.start(1, NOW)
    it.fail_program("rank 0 exited with code 65", NOW, NOW, final=True)
    assert (it.state, it.reason, it.ended_at) == (State.ERROR, "rank 0 exited with code 65", NOW)


def test_losses_of_the_platform_do_not_count_as_failures_but_are_bounded() -> None:
    it = job()
    for _ in range(MAX_PLATFORM_LOSSES):
        it.start(1, NOW)
        it.lose("lost", NOW, NOW)
        assert it.state is State.SUBMITTED
    it.start(1, NOW)
    it.lose("lost", NOW, NOW)
    assert it.state is State.ERROR


def test_a_resize_counts_neither_as_failure_nor_as_loss() -> None:
    it = job()
    it.start(1, NOW)
    it.resize("grows from 1 to 2 ranks")
    assert (it.state, it.reason) == (State.RUNNING, "grows from 1 to 2 ranks")
    it.resume()
    assert (it.state, it.resizing, it.not_before) == (State.SUBMITTED, True, None)
    assert it.wait("instance group lab is stopped")
    it.start(2, NOW)
    assert (it.attempt, it.current_ranks, it.resizing) == (2, 2, False)
    assert (it.program_failures, it.platform_losses) == (0, 0)
    assert (it.reason, it.waits_because) == ("went on with 2 instead of 1 ranks", "")


def test_a_failure_during_a_resize_is_a_failure() -> None:
    it = job(max_restarts=1)
    it.start(2, NOW)
    it.resize("shrinks from 2 to 1 rank")
    it.fail_program("rank 1 was ended by SIGSEGV", NOW, NOW)
    assert (it.program_failures, it.resizing) == (1, False)


def test_a_suspended_job_waits_in_its_place_again() -> None:
    it = job()
    it.start(2, NOW, is_backfill=True)
    it.suspend("makes room for X")
    assert (it.resizing, it.suspending, it.spare) == (True, True, 2)
    it.resume()
    assert (it.state, it.resizing, it.suspending) == (State.SUBMITTED, False, False)
    assert it.wait("needs 1 slot, 0 of 2 are free; runs next")
    assert (it.reason, it.waits_because) == ("makes room for X", "needs 1 slot, 0 of 2 are free; runs next")
    it.start(1, NOW)
    assert (it.reason, it.is_backfill, it.program_failures, it.platform_losses) == ("makes room for X", False, 0, 0)


def test_illegal_moves_are_refused() -> None:
    it = job()
    with pytest.raises(ServiceError):
        it.finish(NOW)
    it.kill("stopped", NOW)
    for move in (lambda: it.start(1, NOW), lambda: it.finish(NOW), lambda: it.kill("again", NOW)):
        with pytest.raises(ServiceError):
            move()
    assert it.state is State.KILLED
