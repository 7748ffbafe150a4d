"""Studies side by side: what is in the way of one is in the way of no other; with played peers that hang."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from servicekit.errors import Code, ServiceError
from servicekit.reconcile import Next, ReconcileLoop
from studies_room import StudiesRoom, request_of
from tuning_service.domain.study import Kind, Status, Trial, TrialStatus
from tuning_service.usecases.passes import STUDIES_AT_ONCE, Passes
from tuning_service.usecases.studies import Budget, ChangeStudies

LIMIT_SECONDS = 240


async def until(condition: Callable[[], bool]) -> None:
    """Until what goes on beside has made it true."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def step_until(room: StudiesRoom, condition: Callable[[], Awaitable[bool]]) -> None:
    """An algorithm may answer after the pass that asked it."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while not await condition():
            await room.step()


class Hang:
    """A call to a peer that hangs for one study, until `end`."""

    def __init__(self, call: Any, is_meant: Callable[..., bool]) -> None:
        self._call, self._is_meant = call, is_meant
        self.hanging = 0
        self.end = asyncio.Event()

    async def __call__(self, *arguments: Any, **more: Any) -> Any:
        if not self._is_meant(*arguments) or self.end.is_set():
            return await self._call(*arguments, **more)
        self.hanging += 1
        await self.end.wait()
        self.hanging -= 1
        return await self._call(*arguments, **more)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("call", ["start", "results"])
async def test_a_study_whose_peer_hangs_holds_up_no_other(room: StudiesRoom, call: str, kind: Kind) -> None:
    stuck = await room.add("stuck", request=request_of(maxJobNum=2), kind=kind)
    if call == "start":
        hang = Hang(room.runner.start, lambda study, *_: study.uid == stuck)
    else:
        hang = Hang(room.runner.results, lambda _, trials: trials[0].study_uid == stuck)
        (running,) = await room.until_running(stuck, 1)
        room.jobs.end(running.uid, "FINISHED")
    setattr(room.runner, call, hang)
    room.jobs.tells_ends = True
    loop = ReconcileLoop("studies", room.loop.step, soon_seconds=0.01)
    runs = asyncio.create_task(loop.run())
    await until(lambda: hang.hanging == 1)
    uid = await room.add("other", request=request_of(maxJobNum=4))
    loop.wake()
    for number in range(1, 5):
        await until(lambda number=number: bool(_started(room, uid, number)))  # type: ignore[misc]
        room.jobs.end(_started(room, uid, number)[0].uid, "FINISHED")
    async with asyncio.timeout(LIMIT_SECONDS):
        while not (await room.study(uid)).status.is_final:
            await asyncio.sleep(0.01)
    assert (await room.study(uid)).counts.finished == 4
    # However often the loop looked: never two passes over one study.
    assert (hang.hanging, (await room.study(stuck)).status) == (1, Status.RUNNING)
    hang.end.set()
    await until(lambda: bool(_started(room, stuck, 1)))
    loop.stop()
    await runs


def _started(room: StudiesRoom, uid: str, number: int) -> list[Trial]:
    return [trial for trial in room.runner.started if (trial.study_uid, trial.number) == (uid, number)]


async def test_the_next_trial_needs_no_look_at_all_studies(room: StudiesRoom) -> None:
    """What ends is told, and its study looked at: nobody waits for a step."""
    uid = await room.add(request=request_of(maxJobNum=3))
    room.jobs.tells_ends = True
    await room.step()
    for number in (1, 2, 3):
        await until(lambda number=number: bool(_started(room, uid, number)))  # type: ignore[misc]
        room.jobs.end(_started(room, uid, number)[0].uid, "FINISHED")
    async with asyncio.timeout(LIMIT_SECONDS):
        while not (await room.study(uid)).status.is_final:
            await asyncio.sleep(0.01)
    assert (await room.study(uid)).counts.finished == 3


async def test_a_few_trials_are_started_at_a_time(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=10, maxParalleJob=10))
    hang = Hang(room.runner.start, lambda *_: True)
    most, started = 0, room.runner.start

    async def counted(*arguments: Any) -> None:
        nonlocal most
        most = max(most, hang.hanging)
        await started(*arguments)

    hang = Hang(counted, lambda *_: True)
    room.runner.start = hang  # type: ignore[method-assign]
    await room.loop.step()
    await until(lambda: hang.hanging == 4)
    hang.end.set()
    assert len(await room.until_running(uid, 10)) == 10
    assert most < 4


@pytest.mark.parametrize(
    ("code", "reason", "is_passing"),
    [
        (Code.UNAVAILABLE, "UNAVAILABLE", True),
        (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", True),
        (Code.INTERNAL, "INTERNAL", True),
        (Code.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED", True),
        (Code.ABORTED, "IN_USE", True),
        (Code.ABORTED, "CONFLICT", False),
        (Code.ALREADY_EXISTS, "ALREADY_EXISTS", False),
        (Code.PERMISSION_DENIED, "PERMISSION_DENIED", False),
        (Code.NOT_FOUND, "NOT_FOUND", False),
        (Code.UNIMPLEMENTED, "UNIMPLEMENTED", False),
    ],
)
@pytest.mark.parametrize("end", ["stop", "time"])
async def test_starts_that_fail_hold_up_neither_limits_nor_other_trials(
    room: StudiesRoom, code: Code, reason: str, is_passing: bool, end: str
) -> None:
    uid = await room.add(request=request_of(maxJobNum=-1, maxParalleJob=3, maxRunTime=10, maxFailedTrials=19))
    works = room.runner.start

    async def start(study: Any, plan: Any, trial: Trial, parent: Any) -> None:
        if trial.number == 2:
            raise ServiceError(code, reason, "not this one")
        await works(study, plan, trial, parent)

    async def running() -> list[str]:
        return [trial.uid for trial in await room.trials(uid) if trial.status is TrialStatus.RUNNING]

    async def is_full() -> bool:
        return len(await running()) == (2 if is_passing else 3)

    room.runner.start = start  # type: ignore[method-assign]
    await step_until(room, is_full)
    second = (await room.trials(uid))[1]
    if not is_passing:
        assert (second.status, second.message) == (TrialStatus.FAILED, "not this one")
    else:
        assert (second.status, (await room.study(uid)).status_message) == (TrialStatus.NOTRUN, "waiting: not this one")
    # The others run, and what ends makes room for more.
    first = (await running())[0]
    room.jobs.end(first, "FINISHED")
    await room.step()
    assert first not in await running()
    await step_until(room, is_full)
    left = await running()
    if end == "stop":
        assert await room.studies.request_stop(uid, room.now(), at_once=False)
    else:
        room.passes(601)
    await room.steps(4)
    study = await room.study(uid)
    assert study.status is (Status.STOPPED if end == "stop" else Status.FINISHED)
    assert sorted(room.jobs.stopped) == sorted(left)
    assert (second.uid in room.runner.deleted) is is_passing


async def test_a_limit_holds_while_nothing_can_be_read_or_started(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=-1, maxParalleJob=2, maxRunTime=10))
    first, second = await room.until_running(uid, 2)

    async def away(*_: Any, **__: Any) -> Any:
        raise ServiceError(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "training hangs")

    reads, room.runner.results = room.runner.results, away  # type: ignore[method-assign]
    room.jobs.end(first.uid, "FINISHED")
    await room.steps(2)
    assert (await room.study(uid)).status_message == "waiting: training hangs"
    room.passes(601)
    await room.steps(2)
    assert room.jobs.stopped == [second.uid]
    assert (
        (await room.study(uid)).status_message
    ) == "ending when 2 trials more ended: maxRunTime, 10 minutes, is over; waiting: training hangs"
    room.runner.results = reads  # type: ignore[method-assign]
    await room.steps(3)
    study = await room.study(uid)
    assert (study.status, study.counts.finished, study.counts.stopped) == (Status.FINISHED, 1, 1)


async def test_a_peer_that_is_away_is_not_asked_once_for_each_trial(room: StudiesRoom) -> None:
    await room.add(request=request_of(maxJobNum=50, maxParalleJob=50))
    asked: list[int] = []

    async def away(study: Any, plan: Any, trial: Trial, parent: Any) -> None:
        asked.append(trial.number)
        raise ServiceError(Code.UNAVAILABLE, "UNAVAILABLE", "scheduling is away")

    room.runner.start = away  # type: ignore[method-assign]

    async def is_asked() -> bool:
        return bool(asked)

    await step_until(room, is_asked)
    # By one pass, or by two.
    assert len(asked) <= 8


async def test_what_was_not_started_is_given_up_in_one_call(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=50, maxParalleJob=50))

    async def away(*_: Any) -> None:
        raise ServiceError(Code.UNAVAILABLE, "UNAVAILABLE", "scheduling is away")

    calls: list[int] = []
    works = room.runner.delete

    async def delete(uids: Any) -> None:
        calls.append(len(uids))
        await works(uids)

    room.runner.start, room.runner.delete = away, delete  # type: ignore[method-assign]

    async def are_there() -> bool:
        return len(await room.trials(uid)) == 50

    await step_until(room, are_there)
    assert await room.studies.request_stop(uid, room.now(), at_once=False)
    await room.steps(2)
    assert (calls, (await room.study(uid)).status) == ([50], Status.STOPPED)


async def test_what_is_in_the_way_is_said_as_long_as_it_is(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=2))
    await room.until_running(uid, 1)
    room.jobs.is_away = True
    await room.steps(2)
    assert (await room.study(uid)).status_message == "waiting: scheduling is away"
    room.jobs.is_away = False
    await room.steps(2)
    assert (await room.study(uid)).status_message == ""


async def test_an_algorithm_that_ends_slowly_holds_up_no_other_study(room: StudiesRoom) -> None:
    first = await room.add("first", request=request_of(maxJobNum=1))
    (running,) = await room.until_running(first, 1)
    hang = Hang(room.suggestions.forget, lambda *_: True)
    room.suggestions.forget = hang  # type: ignore[method-assign]
    room.jobs.end(running.uid, "FINISHED")
    other = await room.add("other", request=request_of(maxJobNum=2))

    async def is_let_go() -> bool:
        return hang.hanging == 1

    async with asyncio.timeout(LIMIT_SECONDS):
        await step_until(room, is_let_go)
        await room.until_running(other, 1)
        # Restarted meanwhile: its algorithm is asked when what was left of it has ended.
        changes = ChangeStudies(
            Kind.HYPER_SEARCH, room.studies, room.algorithms, room.now, wake=lambda: None, wake_removals=lambda: None
        )
        await changes.restart(await room.study(first), Budget(max_trials=2))
        await room.steps(3)
        assert room.suggestions.asks == [("first", 1), ("other", 1)]
        hang.end.set()
        assert (await room.to_the_end(first)).counts.finished == 2


# -- the passes themselves


async def test_a_few_studies_of_a_kind_at_once_in_turns_and_each_once() -> None:
    looked: list[str] = []
    under_way: set[str] = set()
    go_on = asyncio.Event()

    async def look(uid: str) -> Next:
        assert uid not in under_way
        under_way.add(uid)
        looked.append(uid)
        await go_on.wait()
        under_way.remove(uid)
        return Next.SOON

    passes = Passes(look)
    names = [f"s{number}" for number in range(STUDIES_AT_ONCE + 2)]
    for name in names:
        passes.begin(name, Kind.HYPER_SEARCH)
    passes.begin("tuning", Kind.MODEL_TUNING)
    await until(lambda: len(under_way) == STUDIES_AT_ONCE + 1)
    # Those of the other kind have room of their own.
    assert looked == [*names[:STUDIES_AT_ONCE], "tuning"]
    for _ in range(3):
        passes.begin("s0", Kind.HYPER_SEARCH)
    go_on.set()
    await until(lambda: not passes.tasks)
    # What came during a pass is looked at once more, after those that wait.
    assert looked[STUDIES_AT_ONCE + 1 :] == [*names[STUDIES_AT_ONCE:], "s0"]


async def test_a_study_is_looked_at_again_while_that_changes_something() -> None:
    answers = [Next.AT_ONCE, Next.AT_ONCE, Next.SOON, Next.AT_ONCE]

    async def look(_: str) -> Next:
        return answers.pop(0)

    passes = Passes(look)
    passes.begin("s", Kind.HYPER_SEARCH)
    await until(lambda: not passes.tasks)
    assert answers == [Next.AT_ONCE]


async def test_a_look_that_fails_is_logged_and_the_next_one_is_made(caplog: pytest.LogCaptureFixture) -> None:
    looks = 0

    async def look(_: str) -> Next:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise KeyError("no table")
        return Next.SOON

    passes = Passes(look)
    for _ in range(2):
        passes.begin("s", Kind.HYPER_SEARCH)
        await until(lambda: not passes.tasks)
    assert looks == 2
    assert "no table" in caplog.text


async def test_closing_lets_passes_end_and_begins_none() -> None:
    ended: list[str] = []
    go_on = asyncio.Event()

    async def look(uid: str) -> Next:
        await go_on.wait()
        ended.append(uid)
        return Next.AT_ONCE

    passes = Passes(look)
    passes.begin("s", Kind.HYPER_SEARCH)
    await asyncio.sleep(0)
    closing = asyncio.create_task(passes.close())
    await asyncio.sleep(0)
    passes.begin("other", Kind.HYPER_SEARCH)
    go_on.set()
    await closing
    assert (ended, dict(passes.tasks)) == (["s"], {})
