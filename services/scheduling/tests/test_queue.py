"""The queue's decisions, pure: whole gangs, first come first served, nobody starves, every waiting job knows why."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from scheduling_service.domain.job import MAX_PLATFORM_LOSSES, Job, Spec, State
from scheduling_service.domain.policy import Waiting, plan
from servicekit.errors import ServiceError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_gang_starts_whole_or_waits_and_holds_the_queue() -> None:
    decided = plan([Waiting("a", "A", 1), Waiting("b", "B", 3), Waiting("c", "C", 1)], slots=4, used=1)
    assert decided.start == ["a"]
    assert decided.reasons == {
        "b": "needs 3 slots at once, 2 of 4 are free; runs next",
        "c": "behind B, which runs next",
    }


def test_a_job_that_pauses_holds_nobody_up() -> None:
    decided = plan([Waiting("a", "A", 2, delayed_seconds=4.6), Waiting("b", "B", 2)], slots=2, used=0)
    assert decided.start == ["b"]
    assert "pauses 5 s" in decided.reasons["a"]


@pytest.mark.parametrize("seed", range(20))
def test_random_traces_never_oversubscribe_and_every_job_ends(seed: int) -> None:
    dice = random.Random(seed)
    slots = dice.randint(1, 8)
    coming = [Waiting(str(number), f"job {number}", dice.randint(1, slots)) for number in range(200)]
    order = [job.job_id for job in coming]
    waiting: list[Waiting] = []
    running: dict[str, tuple[int, int]] = {}
    started: list[str] = []
    clock = 0
    while coming or waiting or running:
        clock += 1
        assert clock < 10_000, "a job starves"
        running = {job: (ranks, end) for job, (ranks, end) in running.items() if end > clock}
        while coming and dice.random() < 0.5:
            waiting.append(coming.pop(0))
        used = sum(ranks for ranks, _ in running.values())
        decided = plan(waiting, slots, used)
        for job in list(waiting):
            assert (job.job_id in decided.start) != (job.job_id in decided.reasons)
            if job.job_id in decided.start:
                running[job.job_id] = (job.ranks, clock + dice.randint(1, 9))
                started.append(job.job_id)
                waiting.remove(job)
        assert sum(ranks for ranks, _ in running.values()) <= slots
    assert started == order


def job(max_restarts: int = 0) -> Job:
    return Job("j", Spec("n", "training", "ann", 1, ["true"], max_restarts=max_restarts), "g", NOW)


def test_program_failures_are_retried_as_often_as_asked_then_an_error() -> None:
    it = job(max_restarts=1)
    it.start(NOW)
    it.fail_program("rank 0 exited with code 3", NOW + timedelta(seconds=1), NOW)
    assert (it.state, it.attempt) == (State.SUBMITTED, 1)
    assert it.reason == "rank 0 exited with code 3; restart 1 of 1"
    it.start(NOW)
    it.fail_program("rank 0 exited with code 3", NOW, NOW)
    assert (it.state, it.reason, it.ended_at) == (State.ERROR, "rank 0 exited with code 3", NOW)


def test_a_final_failure_is_not_retried() -> None:
    it = job(max_restarts=2)
    it.start(NOW)
    it.fail_program("rank 0 exited with code 65", NOW, NOW, final=True)
    assert (it.state, it.reason, it.ended_at) == (State.ERROR, "rank 0 exited with code 65", NOW)


def test_losses_of_the_platform_do_not_count_as_failures_but_are_bounded() -> None:
    it = job()
    for _ in range(MAX_PLATFORM_LOSSES):
        it.start(NOW)
        it.lose("lost", NOW, NOW)
        assert it.state is State.SUBMITTED
    it.start(NOW)
    it.lose("lost", NOW, NOW)
    assert it.state is State.ERROR


def test_illegal_moves_are_refused() -> None:
    it = job()
    with pytest.raises(ServiceError):
        it.finish(NOW)
    it.kill("stopped", NOW)
    for move in (lambda: it.start(NOW), lambda: it.finish(NOW), lambda: it.kill("again", NOW)):
        with pytest.raises(ServiceError):
            move()
    assert it.state is State.KILLED
