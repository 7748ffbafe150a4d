"""What a stop finds ended has its result; what it cut off runs again after a restart, what had no hope counts so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from servicekit.database import Database
from servicekit.errors import ServiceError
from studies_room import StudiesRoom, request_of
from tuning_service.algorithms.base import Evaluation
from tuning_service.algorithms.history import History
from tuning_service.algorithms.rungs import best_of
from tuning_service.domain.evaluation import TrialState
from tuning_service.domain.space import Continuous, Space
from tuning_service.domain.study import STOPPED_WITH_STUDY, Counts, Status, TrialStatus
from tuning_service.usecases.stored_plans import stored_plan
from tuning_service.usecases.studies import Budget
from tuning_service.usecases.trials import TrialHistory


@pytest.mark.parametrize(("state", "status"), [("FINISHED", TrialStatus.FINISHED), ("ERROR", TrialStatus.FAILED)])
async def test_a_trial_that_ends_by_itself_when_its_study_is_stopped_keeps_its_result(
    room: StudiesRoom, state: str, status: TrialStatus
) -> None:
    uid = await room.add(request=request_of(maxJobNum=4, maxParalleJob=2))
    first, second = await room.until_running(uid, 2)
    room.jobs.end(first.uid, "FINISHED")
    _, third = await room.until_running(uid, 2)
    assert await room.studies.request_stop(uid, room.now(), at_once=False)
    room.jobs.stops_as = lambda uid: state if uid == second.uid else "KILLED"
    await room.steps(6)
    study, before = await room.study(uid), await room.trials(uid)
    assert (sorted(room.jobs.stopped), study.status) == (sorted([second.uid, third.uid]), Status.STOPPED)
    ends = [(trial.status, trial.stop_reason) for trial in before]
    assert ends == [(TrialStatus.FINISHED, ""), (status, ""), (TrialStatus.STOPPED, STOPPED_WITH_STUDY)]
    failed = int(state == "ERROR")
    assert study.counts == Counts(3, finished=2 - failed, failed=failed, stopped=1)
    await room.changes.restart(study, Budget())
    after = await room.study(uid)
    assert (after.counts, after.best) == (Counts(3, finished=2 - failed, failed=failed, stopped=0), study.best)
    study = await room.to_the_end(uid)
    assert study.counts == Counts(4, finished=4 - failed, failed=failed, stopped=0)
    trials = await room.trials(uid)
    assert (list(trials[:2]), trials[2].attempts) == (list(before[:2]), 2)


async def test_nothing_is_cut_off_where_all_ended_by_themselves(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=1))
    await room.until_running(uid, 1)
    assert await room.studies.request_stop(uid, room.now(), at_once=False)
    room.jobs.stops_as = lambda _: "FINISHED"
    await room.steps(4)
    assert (await room.studies.cut_off(uid), (await room.study(uid)).counts.finished) == (0, 1)
    with pytest.raises(ServiceError, match="maxJobNum: 1 is not valid; allowed: more than the 1 that it has run"):
        await room.changes.restart(await room.study(uid), Budget())


async def test_a_restart_with_less_than_has_run_is_refused_whatever_was_cut_off(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=3, maxParalleJob=2))
    first, _ = await room.until_running(uid, 2)
    room.jobs.end(first.uid, "FINISHED")
    await room.until_running(uid, 2)
    assert await room.studies.request_stop(uid, room.now(), at_once=False)
    await room.steps(6)
    study = await room.study(uid)
    assert study.counts == Counts(3, finished=1, stopped=2)
    with pytest.raises(ServiceError, match="maxJobNum: 2 is not valid; allowed: at least the 3 that it has run"):
        await room.changes.restart(study, Budget(max_trials=2))
    await room.changes.restart(study, Budget(max_trials=3))
    study = await room.to_the_end(uid)
    assert (study.status, study.counts) == (Status.FINISHED, Counts(3, finished=3))


async def test_what_has_ended_otherwise_never_runs_again(room: StudiesRoom) -> None:
    """Whatever is written beside it: only what was stopped is cut off."""
    uid = await room.add(request=request_of(maxJobNum=3, maxParalleJob=3))
    trials = await room.until_running(uid, 3)
    for trial, status in zip(trials, (TrialStatus.FINISHED, TrialStatus.FAILED, TrialStatus.STOPPED), strict=True):
        trial.end(status, "", room.now())
        trial.stop_reason = STOPPED_WITH_STUDY
    await room.studies.save(uid, trials, {})
    assert await room.studies.cut_off(uid) == 1
    study = await room.study(uid)
    study.end(Status.STOPPED, "stopped", room.now())
    assert await room.studies.end(study)
    study.resume(room.now())
    assert await room.studies.resume(study, lambda: "again") == 1
    assert [trial.uid == "again" for trial in await room.trials(uid)] == [False, False, True]


# -- the median rule


HOPELESS = (0.1, 0.2, 0.3, 0.25, 0.28)


def falling(values: Mapping[str, Any]) -> str:
    """A loss that falls towards the rate, over ten steps."""
    return json.dumps([{"step": step, "loss": values["rate"] + 1 / step} for step in range(1, 11)])


@pytest.mark.parametrize("state", ["KILLED", "FINISHED", "ERROR"])
async def test_what_has_no_hope_has_failed_with_what_it_reached(database: Database, state: str) -> None:
    room = StudiesRoom(database, falling)
    room.jobs.stops_as = lambda _: state
    given = [
        {"id": index, "hyperParams": [{"name": "rate", "dataType": "double", "fixedVal": rate}]}
        for index, rate in enumerate(HOPELESS)
    ]
    algorithm = {"algorithm": "ExperimentGridSearch", "earlyStopping": {"rule": "median", "minTrials": 4}}
    uid = await room.add(request=request_of(experiments=given, **algorithm))
    for _ in range(4):
        (running,) = await room.until_running(uid, 1)
        room.jobs.end(running.uid, "FINISHED")
    (fifth,) = await room.until_running(uid, 1)
    room.passes(10)
    await room.steps(3)
    assert room.jobs.stopped == [fifth.uid]
    study = await room.study(uid)
    plan = await stored_plan(study, room.algorithms)
    known, _, is_newest = await TrialHistory(room.studies, study, plan).since(0)
    # One that ended by itself counts as what it came to.
    expected = {
        "KILLED": (TrialState.FAILED, (pytest.approx(0.38),)),
        "FINISHED": (TrialState.FINISHED, (pytest.approx(0.38),)),
        "ERROR": (TrialState.FAILED, None),
    }
    assert is_newest
    assert [trial.state for trial in known[:4]] == [TrialState.FINISHED] * 4
    assert (known[4].state, known[4].losses) == expected[state]
    await room.loop.close()


def test_what_has_no_hope_is_not_promoted_and_no_better_than_the_median() -> None:
    space = Space((Continuous("rate", 0.0, 1.0),))
    given_up = Evaluation(4, (0.4,), TrialState.FAILED, (0.5,))
    trials = [Evaluation(number, (number / 10,), TrialState.FINISHED, (float(number),)) for number in (1, 2, 3)]
    assert [trial.number for trial in best_of([*trials, given_up], 2)] == [1, 2]
    history = History(space, 1)
    history.read([*trials, given_up])
    assert history.losses(history.ended)[:, 0].tolist() == [1.0, 2.0, 3.0, 2.0]
