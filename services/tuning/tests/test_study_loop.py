"""Studies are run by the loop: counts, limits, failures, stops, restarts, on every supported database."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from servicekit.jobs import RankOutcome
from studies_room import StudiesRoom, loss_of_rate, request_of
from tuning_service.domain.study import Status, Trial, TrialStatus
from tuning_service.usecases.studies import Budget


async def test_a_search_runs_its_trials_and_keeps_the_best(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=6, maxParalleJob=2))
    study = await room.to_the_end(uid)
    assert (study.status, study.status_message) == (Status.FINISHED, "maxJobNum is reached")
    trials = await room.trials(uid)
    assert [trial.number for trial in trials] == [1, 2, 3, 4, 5, 6]
    assert {trial.status for trial in trials} == {TrialStatus.FINISHED}
    assert (study.counts.trials, study.counts.finished, study.counts.failed) == (6, 6, 0)
    losses = {trial.number: (float(trial.values["rate"]) - 0.3) ** 2 for trial in trials}
    assert study.best == min(losses, key=lambda number: losses[number])
    best = trials[study.best - 1]
    assert best.objectives == (pytest.approx(losses[study.best]),)
    assert best.metrics["loss"].maximum == pytest.approx(best.metrics["loss"].latest + 1)
    assert best.curve == ((1.0, pytest.approx(best.objectives[0] + 1)), (2.0, best.objectives[0]))
    # Nothing is looked at any more.
    assert not await room.studies.tended()


async def test_no_more_than_the_parallel_trials_run(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=5, maxParalleJob=2))
    first, _ = await room.until_running(uid, 2)
    await room.steps(5)
    assert len(room.runner.started) == 2
    room.jobs.end(first.uid, "FINISHED")
    await room.steps(5)
    assert len(room.runner.started) == 3
    # Where there is room for one, one is asked for.
    assert [count for _, count in room.suggestions.asks] == [2, 1]


async def test_maximizing_keeps_the_highest(database: Database) -> None:
    room = StudiesRoom(database, lambda values: json.dumps([{"step": 1, "accuracy": values["rate"]}]))
    algorithm = {"objectiveMetric": "accuracy", "objective": "Maximize", "maxJobNum": 8}
    uid = await room.add(request=request_of(**algorithm))
    study = await room.to_the_end(uid)
    trials = await room.trials(uid)
    assert trials[study.best - 1].values["rate"] == max(trial.values["rate"] for trial in trials)


async def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=6))
    study = await room.to_the_end(uid, lambda trial: "ERROR" if trial.number in (1, 4) else "FINISHED")
    assert study.status is Status.FINISHED
    assert (study.counts.finished, study.counts.failed) == (4, 2)
    failed = (await room.trials(uid))[0]
    assert (failed.status, failed.message, failed.objectives) == (
        TrialStatus.FAILED,
        "rank 0 exited with code 1",
        (),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "wrote no val_dict_list.json"),
        ("{", "is no JSON"),
        ("[1, 2]", "no list of objects"),
        ("[]", "an empty list"),
        ('[{"step": 1, "accuracy": 1}]', "has no metric loss; those it has: accuracy"),
        ('[{"step": 1, "loss": "low"}]', "no finite number as loss"),
        ('[{"step": 1, "loss": 0.5}, {"step": 2, "loss": NaN}]', "the newest loss in val_dict_list.json is NaN"),
        ('[{"step": 1, "loss": 1e999}]', "no finite number as loss"),
        ("[" * 100_000, "is no JSON"),
    ],
)
async def test_nonsense_for_results_is_a_failure_that_says_so(database: Database, text: str, says: str) -> None:
    room = StudiesRoom(database, lambda values: text)
    uid = await room.add(request=request_of(maxJobNum=2))
    study = await room.to_the_end(uid)
    assert study.status is Status.FAILED
    assert "no trial ended with a value (2 failed" in study.status_message
    assert says in study.status_message
    assert says in (await room.trials(uid))[0].message


async def test_a_program_that_always_fails_is_not_tried_for_ever(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=-1))
    study = await room.to_the_end(uid, lambda trial: "ERROR")
    assert study.status is Status.FAILED
    assert study.counts.failed == 20
    assert "the first 20 trials failed, all of them; trial 20: rank 0 exited" in study.status_message


async def test_failures_end_a_search_that_says_so(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=50, maxFailedTrials=3))
    study = await room.to_the_end(uid, lambda trial: "ERROR" if trial.number % 2 else "FINISHED")
    assert (study.status, study.counts.failed, study.counts.finished) == (Status.FINISHED, 3, 2)


async def test_a_goal_ends_a_search(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=500, goal=0.001))
    study = await room.to_the_end(uid)
    assert study.status is Status.FINISHED
    assert study.status_message == "loss reached the goal, 0.001"
    assert study.best == study.counts.trials < 500


async def test_patience_ends_a_search(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=500, patience=4))
    study = await room.to_the_end(uid)
    assert study.status_message == "4 trials brought nothing better"
    assert study.counts.trials == study.best + 4


async def test_everything_tried_ends_a_search(room: StudiesRoom) -> None:
    layers = {"name": "rate", "type": "Discrete", "dataType": "double", "discreteDbVal": [0.1, 0.2, 0.3]}
    uid = await room.add(request=request_of(maxJobNum=-1, maxParalleJob=2, hyperParams=[layers]))
    study = await room.to_the_end(uid)
    assert (study.status, study.status_message) == (Status.FINISHED, "there is nothing left to try")
    assert sorted(trial.values["rate"] for trial in await room.trials(uid)) == [0.1, 0.2, 0.3]


async def test_points_to_begin_with_are_tried_first(room: StudiesRoom) -> None:
    points = [{"rate": 0.5}, {"rate": 0.3}, {"rate": 0.1}]
    uid = await room.add(request=request_of(maxJobNum=6, maxParalleJob=2, startPoints=points, algorithm="Tpe"))
    study = await room.to_the_end(uid)
    trials = await room.trials(uid)
    assert [trial.values for trial in trials[:3]] == points
    assert (study.counts.finished, study.best, study.best_loss) == (6, 2, 0.0)
    # The algorithm knows of them.
    assert [trial.place for trial in trials[:3]] == [(0.5,), (0.3,), (0.1,)]


async def test_a_higher_rung_knows_what_it_goes_on_from(room: StudiesRoom) -> None:
    resource = [{"name": "ResourceName", "value": "epochs"}, {"name": "ResourceValue", "value": "9"}]
    uid = await room.add(request=request_of(algorithm="Hyperband", algoParams=resource, maxJobNum=13))
    await room.to_the_end(uid)
    trials = await room.trials(uid)
    assert {trial.values["epochs"] for trial in trials} == {1, 3, 9}
    promoted = {trial.number: trials[trial.notes["parent"] - 1] for trial in trials if trial.notes.get("parent")}
    assert {number: parent.uid for number, parent in promoted.items()} == room.runner.parents
    assert all(trials[number - 1].values["rate"] == parent.values["rate"] for number, parent in promoted.items())


async def test_experiments_are_run_as_given(room: StudiesRoom) -> None:
    given = [
        {"id": 10 + index, "hyperParams": [{"name": "rate", "dataType": "double", "fixedVal": rate}]}
        for index, rate in enumerate((0.5, 0.25, 0.125))
    ]
    uid = await room.add(request=request_of(algorithm="ExperimentGridSearch", experiments=given, maxParalleJob=2))
    study = await room.to_the_end(uid)
    assert study.status is Status.FINISHED
    assert [trial.values for trial in await room.trials(uid)] == [{"rate": 0.5}, {"rate": 0.25}, {"rate": 0.125}]
    assert study.best == 2


async def test_time_ends_a_search_and_what_runs(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxRunTime=10, maxParalleJob=2))
    first, second = await room.until_running(uid, 2)
    room.jobs.end(first.uid, "FINISHED")
    await room.until_running(uid, 2)
    room.passes(601)
    await room.steps(4)
    study = await room.study(uid)
    assert (study.status, study.status_message) == (Status.FINISHED, "maxRunTime, 10 minutes, is over")
    stopped = (await room.trials(uid))[1]
    assert (stopped.uid, stopped.status, stopped.message) == (second.uid, TrialStatus.STOPPED, "maxRunTime was over")


async def test_a_stop_ends_trials_and_a_restart_runs_them_again(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=4, maxParalleJob=2))
    first, cut_off = await room.until_running(uid, 2)
    room.jobs.end(first.uid, "FINISHED")
    await room.until_running(uid, 2)
    assert await room.studies.request_stop(uid, room.now(), at_once=False)
    await room.steps(6)
    study = await room.study(uid)
    assert (study.status, study.counts.stopped, study.counts.finished) == (Status.STOPPED, 2, 1)
    assert not await room.studies.tended()
    room.passes(1000)
    await room.changes.restart(study, Budget())
    study = await room.to_the_end(uid)
    assert (study.status, study.counts.trials, study.counts.finished) == (Status.FINISHED, 4, 4)
    again = (await room.trials(uid))[1]
    assert (again.values, again.attempts) == (cut_off.values, 2)
    assert again.uid != cut_off.uid
    # The pause does not count.
    assert study.seconds(room.now()) < 1000


async def test_a_stop_by_force_is_at_once_and_trials_end_afterwards(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=4))
    (running,) = await room.until_running(uid, 1)
    room.jobs.is_away = True
    assert await room.studies.request_stop(uid, room.now(), at_once=True)
    assert (await room.study(uid)).status is Status.STOPPED
    await room.steps(2)
    with pytest.raises(ServiceError, match="being stopped"):
        await room.changes.restart(await room.study(uid), Budget())
    room.jobs.is_away = False
    await room.steps(4)
    assert room.jobs.stopped == [running.uid]
    assert (await room.trials(uid))[0].status is TrialStatus.STOPPED
    assert not await room.studies.request_stop(uid, room.now(), at_once=True)


async def test_a_finished_search_goes_on_with_a_larger_budget(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=3))
    study = await room.to_the_end(uid)
    with pytest.raises(ServiceError) as caught:
        await room.changes.restart(study, Budget())
    assert caught.value.metadata["field"] == "maxJobNum"
    before = await room.trials(uid)
    await room.changes.restart(study, Budget(max_trials=5))
    study = await room.to_the_end(uid)
    assert (study.status, study.counts.finished) == (Status.FINISHED, 5)
    assert (await room.trials(uid))[:3] == before


async def test_what_runs_cannot_be_restarted_or_deleted(room: StudiesRoom) -> None:
    uid = await room.add()
    await room.until_running(uid, 1)
    study = await room.study(uid)
    for refused in (room.changes.restart(study, Budget()), room.changes.delete(study)):
        with pytest.raises(ServiceError) as caught:
            await refused
        assert caught.value.code is Code.ABORTED


async def test_a_trial_counts_when_all_that_it_wrote_is_known(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=1))
    (running,) = await room.until_running(uid, 1)
    room.runner.unsettled = {running.uid}
    room.jobs.end(running.uid, "FINISHED")
    await room.steps(4)
    assert (await room.trials(uid))[0].status is TrialStatus.RUNNING
    room.runner.unsettled = set()
    assert (await room.to_the_end(uid)).counts.finished == 1


async def test_a_task_that_somebody_deleted_is_a_failure(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=2))
    (running,) = await room.until_running(uid, 1)
    del room.jobs.facts[running.uid]
    study = await room.to_the_end(uid)
    assert (study.status, study.counts.failed, study.counts.finished) == (Status.FINISHED, 1, 1)
    assert (await room.trials(uid))[0].message == "its task was deleted before it ended"


@pytest.mark.parametrize("kills", [1, 2, 3])
async def test_a_trial_that_was_killed_begins_anew_twice(room: StudiesRoom, kills: int) -> None:
    uid = await room.add(request=request_of(maxJobNum=2))
    uids = []
    for _ in range(kills):
        (running,) = await room.until_running(uid, 1)
        uids.append(running.uid)
        room.jobs.end(running.uid, "ERROR", rank_outcomes=[RankOutcome(0, 7, -9, is_cause=True)])
    study = await room.to_the_end(uid)
    assert (study.counts.trials, study.counts.failed) == (2, int(kills == 3))
    first = (await room.trials(uid))[0]
    assert first.attempts == min(kills + 1, 3)
    assert [*first.earlier_uids, first.uid][:kills] == uids
    assert {trial.values["rate"] for trial in room.runner.started if trial.number == 1} == {first.values["rate"]}


async def test_a_program_that_ends_itself_does_not(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=2))
    (running,) = await room.until_running(uid, 1)
    room.jobs.end(running.uid, "ERROR", rank_outcomes=[RankOutcome(0, 7, 1, is_cause=True), RankOutcome(1, 8, -9)])
    assert (await room.to_the_end(uid)).counts.failed == 1


async def test_a_task_that_a_user_stopped_is_stopped_and_stays_so(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=2))
    (running,) = await room.until_running(uid, 1)
    room.jobs.end(running.uid, "KILLED", reason="stopped by the user")
    study = await room.to_the_end(uid)
    assert (study.status, study.counts.stopped, study.counts.finished) == (Status.FINISHED, 1, 1)


async def test_trials_that_are_refused_fail(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=2))
    room.runner.refusal = "something else"
    study = await room.to_the_end(uid)
    assert study.status is Status.FAILED
    assert "allowed: something else" in study.status_message


async def test_an_algorithm_that_breaks_fails_its_study_only(room: StudiesRoom) -> None:
    uid, other = await room.add(request=request_of(maxJobNum=5)), await room.add("other")
    (running,) = await room.until_running(uid, 1)
    room.suggestions.error = "optimizer.py raised ZeroDivisionError in line 7"
    room.jobs.end(running.uid, "FINISHED")
    await room.steps(5)
    study = await room.study(uid)
    assert (study.status, study.counts.finished) == (Status.FAILED, 1)
    assert study.status_message == "optimizer.py raised ZeroDivisionError in line 7"
    room.suggestions.error = ""
    assert (await room.to_the_end(other)).status is Status.FINISHED
    # It was mended: the search goes on, whatever this process remembers of before.
    await room.changes.restart(await room.study(uid), Budget())
    assert (await room.to_the_end(uid)).counts.finished == 5


async def test_a_refusal_to_start_holds_up_no_limit(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=-1, maxRunTime=10))
    (running,) = await room.until_running(uid, 1)

    async def away(*_: object) -> None:
        raise ServiceError(Code.UNAVAILABLE, "UNAVAILABLE", "scheduling is away")

    room.runner.start = away  # type: ignore[method-assign]
    room.jobs.end(running.uid, "FINISHED")
    await room.steps(4)
    assert (await room.study(uid)).status_message == "waiting: scheduling is away"
    room.passes(700)
    await room.steps(4)
    study = await room.study(uid)
    assert (study.status, study.status_message) == (Status.FINISHED, "maxRunTime, 10 minutes, is over")
    assert (await room.trials(uid))[1].message == "maxRunTime was over before it started"


async def test_what_no_table_can_hold_is_left_out(database: Database) -> None:
    text = json.dumps([{"step": 1, "loss": 0.5, "a\0b": 1, "\ud800": 2, "line\nbreak": 3, "fine": 4}])
    room = StudiesRoom(database, lambda values: text)
    uid = await room.add(request=request_of(maxJobNum=2))
    study = await room.to_the_end(uid, lambda trial: "ERROR" if trial.number == 2 else "FINISHED")
    assert study.status is Status.FINISHED
    assert set((await room.trials(uid))[0].metrics) == {"loss", "fine"}


async def test_the_scheduling_service_may_be_away(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=2))
    (running,) = await room.until_running(uid, 1)
    room.jobs.is_away = True
    await room.steps(3)
    study = await room.study(uid)
    assert (study.status, study.status_message) == (Status.RUNNING, "waiting: scheduling is away")
    room.jobs.is_away = False
    room.jobs.end(running.uid, "FINISHED")
    assert (await room.to_the_end(uid)).counts.finished == 2


def hopeless(values: Mapping[str, Any]) -> str:
    """A loss that falls towards the rate, over ten steps."""
    return json.dumps([{"step": step, "loss": values["rate"] + 1 / step} for step in range(1, 11)])


async def test_trials_without_hope_are_ended(database: Database) -> None:
    room = StudiesRoom(database, hopeless)
    given = [
        {"id": index, "hyperParams": [{"name": "rate", "dataType": "double", "fixedVal": rate}]}
        for index, rate in enumerate((0.1, 0.2, 0.3, 0.25, 0.28, 0.05))
    ]
    algorithm = {"algorithm": "ExperimentGridSearch", "earlyStopping": {"rule": "median", "minTrials": 4}}
    uid = await room.add(request=request_of(experiments=given, **algorithm))
    for _ in range(4):
        (running,) = await room.until_running(uid, 1)
        room.jobs.end(running.uid, "FINISHED")
    (fifth,) = await room.until_running(uid, 1)
    # Its 0.38 is more than the others' median at the tenth step, 0.325, and less than that of their means, 0.52.
    assert fifth.values == {"rate": 0.28}
    room.passes(10)
    await room.steps(3)
    trials = await room.trials(uid)
    assert (trials[4].status, trials[4].message) == (TrialStatus.STOPPED, "worse than the median of the others")
    # What it reached is known.
    assert trials[4].objectives == (pytest.approx(0.38),)
    (sixth,) = await room.until_running(uid, 1)
    room.passes(10)
    await room.steps(3)
    assert (await room.trials(uid))[5].status is TrialStatus.RUNNING
    room.jobs.end(sixth.uid, "FINISHED")
    study = await room.to_the_end(uid)
    assert (study.counts.finished, study.counts.stopped, study.best) == (5, 1, 6)


@pytest.mark.parametrize("seed", range(3))
async def test_kills_change_neither_trials_nor_the_best(database: Database, seed: int) -> None:
    chances = random.Random(seed)
    request = request_of(maxJobNum=12, maxParalleJob=3, algorithm=chances.choice(("Random", "Tpe")))
    calm = StudiesRoom(database)
    calm_uid = await calm.add("calm", request=request, seed=seed)
    # The trials end in the same order in both.
    await _run_in_order(calm, calm_uid, None)
    room = StudiesRoom(database)
    uid = await room.add("killed", request=request, seed=seed)
    await _run_in_order(room, uid, chances)
    study, expected = await room.study(uid), await calm.study(calm_uid)
    assert (study.status, study.counts, study.best) == (expected.status, expected.counts, expected.best)
    mine, theirs = await room.trials(uid), await calm.trials(calm_uid)
    assert [trial.values for trial in mine] == [trial.values for trial in theirs]
    # Nothing ran twice.
    assert len({trial.uid for trial in room.runner.started}) == len(room.runner.started) == 12


async def _run_in_order(room: StudiesRoom, uid: str, chances: random.Random | None) -> None:
    """Whenever three run, or all that are left, the oldest ends; with `chances` the loop is killed in any of its calls
    to the outside."""
    for _ in range(3000):
        study = await room.study(uid)
        if study.status.is_final:
            await room.loop.close()
            return
        await _step(room, chances)
        running = [trial for trial in await room.studies.open_trials(uid) if trial.uid in room.jobs.facts]
        if running and len(running) == min(3, 12 - study.counts.ended):
            room.jobs.end(running[0].uid, "FINISHED")
            while (await room.study(uid)).counts.ended == study.counts.ended:
                await _step(room, chances)
    raise AssertionError(await room.study(uid))


class _KilledError(BaseException):
    """As if the process had ended."""


async def _step(room: StudiesRoom, chances: random.Random | None) -> None:
    if chances is None or chances.random() < 0.3:
        await room.step()
        return
    calls = chances.randrange(1, 12)
    is_after = chances.random() < 0.5
    studies, jobs, runner = room.studies, room.jobs, room.runner

    def killing(target: Any) -> Any:
        class Wrapped:
            def __getattr__(self, name: str) -> Any:
                call = getattr(target, name)
                if not callable(call) or name in ("end",):
                    return call

                async def called(*arguments: Any, **more: Any) -> Any:
                    nonlocal calls
                    calls -= 1
                    if not calls and not is_after:
                        raise _KilledError
                    answer = await call(*arguments, **more)
                    if not calls:
                        raise _KilledError
                    return answer

                return called

        return Wrapped()

    room.studies, room.jobs, room.runner = killing(studies), killing(jobs), killing(runner)
    room.restart()
    try:
        await room.step()
    except _KilledError:
        pass
    finally:
        await room.loop.close()
        room.studies, room.jobs, room.runner = studies, jobs, runner
        room.restart()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 100])
async def test_trials_are_shown_to_algorithms_page_by_page(room: StudiesRoom, length: int) -> None:
    uid = await room.add(request=request_of(maxJobNum=9, maxParalleJob=3))
    await room.to_the_end(uid)
    change, is_newest, found = 0, False, {}
    pages = 0
    while not is_newest:
        page, change, is_newest = await room.studies.changed(uid, change, length)
        found |= {trial.number: trial.status for trial in page}
        pages += 1
    assert found == dict.fromkeys(range(1, 10), TrialStatus.FINISHED)
    assert (pages == 1) == (length == 100)
    assert await room.studies.changed(uid, change, length) == ([], change, True)


async def test_the_name_of_a_deleted_search_is_free(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=1))
    with pytest.raises(ServiceError) as caught:
        await room.add()
    assert caught.value.code is Code.ALREADY_EXISTS
    await room.changes.delete(await room.to_the_end(uid))
    assert await room.studies.get(uid) is None
    assert [one for one, _ in await room.studies.deleted()] == [uid]
    await room.add()


def test_a_trial_that_runs_again_knows_nothing_of_before() -> None:
    trial = Trial("s", 1, "a", {"rate": 1}, status=TrialStatus.STOPPED, message="stopped", objectives=(1.0,))
    fresh = replace(trial)
    fresh.run_again("b")
    assert fresh == Trial("s", 1, "b", {"rate": 1}, attempts=2, earlier_uids=("a",))
    assert loss_of_rate({"rate": 0.3})
