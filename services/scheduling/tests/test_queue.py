"""The queue's decisions, pure: whole gangs, first come first served, nobody starves, every waiting job knows why."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from scheduling_service.domain.job import MAX_PLATFORM_LOSSES, Job, Spec, State
from scheduling_service.domain.policy import Running, Waiting, plan
from servicekit.errors import ServiceError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_gang_starts_whole_or_waits_and_holds_the_queue() -> None:
    decided = plan(
        [Waiting("a", "A", 1), Waiting("b", "B", 3), Waiting("c", "C", 1)], slots=4, running=[Running("r", "R", 1)]
    )
    assert decided.start == {"a": 1}
    assert decided.reasons == {
        "b": "needs 3 slots at once, 2 of 4 are free; runs next",
        "c": "behind B, which runs next",
    }


def test_a_job_that_pauses_holds_nobody_up() -> None:
    decided = plan([Waiting("a", "A", 2, delayed_seconds=4.6), Waiting("b", "B", 2)], running=[], slots=2)
    assert decided.start == {"b": 2}
    assert "pauses 5 s" in decided.reasons["a"]


def elastic(job_id: str, fewest: int, most: int, **changes: Any) -> Waiting:
    return Waiting(job_id, job_id.upper(), most, fewest=fewest, **changes)


def gang(job_id: str, ranks: int, fewest: int = 0, most: int = 0, **changes: Any) -> Running:
    return Running(job_id, job_id.upper(), ranks, fewest, most, **{"settled_seconds": 9.0, **changes})


MAKES_ROOM = "needs {} slots at once, {} of {} are free; others make room"
MAKES_ROOM_FOR_ONE = "needs 1 slot, {} of {} are free; others make room"


@pytest.mark.parametrize(
    ("waiting", "running", "slots", "start", "resize", "reasons"),
    [
        # An elastic job starts with what is free, from its fewest on.
        ([elastic("e", 1, 4)], [], 2, {"e": 2}, {}, {}),
        ([elastic("e", 1, 4)], [gang("r", 3)], 4, {"e": 1}, {}, {}),
        ([elastic("e", 1, 2)], [], 8, {"e": 2}, {}, {}),
        ([elastic("e", 2, 4)], [gang("r", 3)], 4, {}, {}, {"e": "needs 2 slots at once, 1 of 4 are free; runs next"}),
        # It leaves what those behind it need.
        ([elastic("e", 1, 4), Waiting("x", "X", 1)], [], 4, {"e": 3, "x": 1}, {}, {}),
        ([elastic("e", 1, 4), elastic("f", 1, 4)], [], 4, {"e": 3, "f": 1}, {}, {}),
        # One that ended for a resize goes on first.
        ([Waiting("x", "X", 1), elastic("e", 1, 2, resizing=True)], [], 2, {"e": 1, "x": 1}, {}, {}),
        ([Waiting("x", "X", 2), elastic("e", 1, 2, resizing=True)], [], 2, {"e": 2}, {},
         {"x": "needs 2 slots at once, 1 of 2 are free; runs next"}),
        # It shrinks for a job that fits then, and only as far as that needs.
        ([Waiting("x", "X", 1)], [gang("e", 2, 1, 2)], 2, {}, {"e": "shrinks from 2 to 1 rank to make room for X"},
         {"x": MAKES_ROOM_FOR_ONE.format(0, 2)}),
        ([Waiting("x", "X", 2)], [gang("e", 4, 1, 8)], 5, {}, {"e": "shrinks from 4 to 3 ranks to make room for X"},
         {"x": MAKES_ROOM.format(2, 1, 5)}),
        ([elastic("x", 1, 2)], [gang("e", 2, 1, 2)], 2, {}, {"e": "shrinks from 2 to 1 rank to make room for X"},
         {"x": MAKES_ROOM_FOR_ONE.format(0, 2)}),
        # The youngest gives first, then the next.
        ([Waiting("x", "X", 3)], [gang("e", 3, 1, 4), gang("f", 3, 1, 4)], 6, {},
         {"f": "shrinks from 3 to 1 rank to make room for X", "e": "shrinks from 3 to 2 ranks to make room for X"},
         {"x": MAKES_ROOM.format(3, 0, 6)}),
        # Never in vain, never below the fewest, never twice.
        ([Waiting("x", "X", 2)], [gang("e", 2, 1, 2)], 2, {}, {},
         {"x": "needs 2 slots at once, 0 of 2 are free; runs next"}),
        ([Waiting("x", "X", 1)], [gang("e", 1, 1, 2), gang("r", 1)], 2, {}, {},
         {"x": "needs 1 slot, 0 of 2 are free; runs next"}),
        ([Waiting("x", "X", 1)], [gang("e", 2, 1, 2, resizing=True)], 2, {}, {},
         {"x": MAKES_ROOM_FOR_ONE.format(0, 2)}),
        ([Waiting("x", "X", 1)], [gang("e", 2, 1, 2), gang("r", 2, leaving=True)], 4, {}, {},
         {"x": MAKES_ROOM_FOR_ONE.format(0, 4)}),
        # What is free already is not taken by those behind the one that it is kept for.
        ([Waiting("x", "X", 2), Waiting("y", "Y", 1)], [gang("e", 3, 1, 4)], 4, {},
         {"e": "shrinks from 3 to 1 rank to make room for X"},
         {"x": MAKES_ROOM.format(2, 1, 4), "y": "behind X, which runs next"}),
        # It grows when slots are free and nobody waits, one gang at a time.
        ([], [gang("e", 1, 1, 2)], 2, {}, {"e": "grows from 1 to 2 ranks"}, {}),
        ([], [gang("e", 1, 1, 8), gang("f", 1, 1, 8)], 4, {}, {"e": "grows from 1 to 3 ranks"}, {}),
        ([], [gang("e", 2, 1, 2), gang("f", 1, 1, 2)], 4, {}, {"f": "grows from 1 to 2 ranks"}, {}),
        ([], [gang("e", 1, 1, 2), gang("r", 1)], 2, {}, {}, {}),
        ([], [gang("r", 1)], 2, {}, {}, {}),
        ([], [gang("e", 1, 1, 2, settled_seconds=4.9)], 2, {}, {}, {}),
        ([], [gang("e", 1, 1, 2, done=0.95)], 2, {}, {}, {}),
        ([], [gang("e", 1, 1, 2), gang("f", 1, 1, 2, resizing=True)], 4, {}, {}, {}),
        ([], [gang("e", 1, 1, 2, resizing=True)], 4, {}, {}, {}),
        ([], [gang("e", 1, 1, 2, leaving=True)], 4, {}, {}, {}),
        ([Waiting("x", "X", 1, delayed_seconds=2)], [gang("e", 1, 1, 2)], 2, {}, {},
         {"x": "pauses 2 s before it is started again"}),
        ([Waiting("x", "X", 4)], [gang("e", 1, 1, 2)], 4, {}, {},
         {"x": "needs 4 slots at once, 3 of 4 are free; runs next"}),
    ],
)  # fmt: skip
def test_elastic_gangs_give_and_take(
    waiting: list[Waiting],
    running: list[Running],
    slots: int,
    start: dict[str, int],
    resize: dict[str, str],
    reasons: dict[str, str],
) -> None:
    decided = plan(waiting, running, slots, idle_seconds=5.0, grow_after_seconds=5.0)
    assert (decided.start, decided.resize, decided.reasons) == (start, resize, reasons)


def test_a_slot_must_be_free_for_a_while_before_a_gang_grows() -> None:
    assert not plan([], [gang("e", 1, 1, 2)], 2, idle_seconds=4.9, grow_after_seconds=5.0).resize


@pytest.mark.parametrize("seed", range(20))
def test_random_traces_never_oversubscribe_and_every_job_ends(seed: int) -> None:
    dice = random.Random(seed)
    slots, busy = dice.randint(1, 8), dice.choice([0.1, 0.5])
    coming: list[Waiting] = []
    for number in range(200):
        ranks = dice.randint(1, slots)
        coming.append(
            Waiting(f"{number:03}", f"job {number}", ranks, fewest=dice.choice([ranks, dice.randint(1, ranks)]))
        )
    everything = {job.job_id: job for job in coming}
    work = {job.job_id: dice.randint(1, 9) for job in coming}
    order = list(everything)
    waiting: list[Waiting] = []
    running: dict[str, int] = {}
    resizing: set[str] = set()
    since: dict[str, int] = {}
    started: list[str] = []
    resizes = 0
    clock = 0
    while coming or waiting or running:
        clock += 1
        assert clock < 10_000, "a job starves"
        for job_id in list(running):
            work[job_id] -= 1
            if job_id in resizing:
                resizing.remove(job_id)
                del running[job_id]
                waiting = sorted([*waiting, replace(everything[job_id], resizing=True)], key=lambda job: job.job_id)
            elif work[job_id] <= 0:
                del running[job_id]
        while coming and dice.random() < busy:
            waiting.append(coming.pop(0))
        gangs = []
        for job_id, ranks in sorted(running.items()):
            job = everything[job_id]
            fewest, most = (job.needed, job.ranks) if job.needed < job.ranks else (0, 0)
            gangs.append(Running(job_id, job.name, ranks, fewest, most, clock - since[job_id], 0.0, job_id in resizing))
        decided = plan(waiting, gangs, slots, idle_seconds=9, grow_after_seconds=2)
        for job in list(waiting):
            assert (job.job_id in decided.start) != (job.job_id in decided.reasons)
            if job.job_id in decided.start:
                assert job.needed <= decided.start[job.job_id] <= job.ranks
                running[job.job_id], since[job.job_id] = decided.start[job.job_id], clock
                if not job.resizing:
                    started.append(job.job_id)
                waiting.remove(job)
            else:
                assert not job.resizing, "what was resized must go on at once"
        assert sum(running.values()) <= slots
        assert not resizing & decided.resize.keys()
        resizing |= decided.resize.keys()
        resizes += len(decided.resize)
    assert started == order
    assert resizes > 0 or slots < 3 or busy > 0.1


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
    assert it.reason == "rank 0 exited with code 3; restart 1 of 1 (waits for 1 of 2 slots)"
    assert it.wait("pauses 2 s before it is started again")
    assert it.reason == "rank 0 exited with code 3; restart 1 of 1 (pauses 2 s before it is started again)"
    it.start(1, NOW)
    # While the second attempt runs it says why there is one.
    assert it.reason == "rank 0 exited with code 3; restart 1 of 1"
    it.fail_program("rank 0 exited with code 3", NOW, NOW)
    assert (it.state, it.reason, it.ended_at) == (State.ERROR, "rank 0 exited with code 3", NOW)


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
    it.start(2, NOW)
    assert (it.attempt, it.current_ranks, it.resizing) == (2, 2, False)
    assert (it.program_failures, it.platform_losses) == (0, 0)
    assert it.reason == "went on with 2 instead of 1 ranks"


def test_a_failure_during_a_resize_is_a_failure() -> None:
    it = job(max_restarts=1)
    it.start(2, NOW)
    it.resize("shrinks from 2 to 1 rank")
    it.fail_program("rank 1 was ended by SIGSEGV", NOW, NOW)
    assert (it.program_failures, it.resizing) == (1, False)


def test_illegal_moves_are_refused() -> None:
    it = job()
    with pytest.raises(ServiceError):
        it.finish(NOW)
    it.kill("stopped", NOW)
    for move in (lambda: it.start(1, NOW), lambda: it.finish(NOW), lambda: it.kill("again", NOW)):
        with pytest.raises(ServiceError):
            move()
    assert it.state is State.KILLED
