"""What earlier studies found, and several objectives."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from servicekit.identity import Identity, acting_as
from servicekit.times import utc_now
from studies_room import StudiesRoom, request_of
from tuning_service.domain.fields import Fields
from tuning_service.domain.pareto import front
from tuning_service.domain.plan import Plan
from tuning_service.domain.study import Kind, Trial, TrialStatus
from tuning_service.suggestions.pareto_front import FrontProcesses
from tuning_service.usecases.ports import TrialPage
from tuning_service.usecases.start_hyper_search import read_request
from tuning_service.usecases.studies import MAX_SHOWN_TRIALS, ParetoFront
from tuning_service.usecases.warm_start import Finding, findings
from tuning_service.worker.pareto_front import front as front_of_many

ANN, BOB = Identity("ann"), Identity("bob")


async def plan_of(room: StudiesRoom, request: Mapping[str, Any]) -> Plan:
    return await read_request(Fields("", request), room.algorithms, Kind.HYPER_SEARCH)


async def known_from(room: StudiesRoom, request: Mapping[str, Any], user: Identity = ANN) -> list[Finding]:
    with acting_as(user):
        return await findings(await plan_of(room, request), Kind.HYPER_SEARCH, "", room.studies)


async def test_a_search_begins_with_what_another_found(database: Database) -> None:
    room = StudiesRoom(database)
    first = await room.to_the_end(await room.add("earlier", request=request_of(maxJobNum=30, algorithm="TPE")))
    request = request_of(maxJobNum=6, algorithm="TPE", warmStart=["earlier"])
    known = await known_from(room, request)
    assert len(known) == 30
    assert [losses for _, losses in known] == sorted(losses for _, losses in known)
    assert known[0][1] == (first.best_loss,)
    warm = await room.to_the_end(await room.add("warm", request=request, known=known, seed=3))
    trials = await room.trials(warm.uid)
    # The best of before is tried again here, and what follows is near it, though a cold search would look everywhere.
    assert trials[0].values["rate"] == pytest.approx(known[0][0][0])
    assert all(abs(float(trial.values["rate"]) - 0.3) < 0.2 for trial in trials)
    cold = await room.to_the_end(await room.add("cold", request=request_of(maxJobNum=6, algorithm="TPE"), seed=3))
    assert any(abs(float(trial.values["rate"]) - 0.3) > 0.2 for trial in await room.trials(cold.uid))


async def test_what_cannot_be_begun_from_is_named(database: Database) -> None:
    room = StudiesRoom(database)
    await room.to_the_end(await room.add("earlier", request=request_of(maxJobNum=2)))
    other_space = [{"name": "speed", "type": "Range", "dataType": "double", "minDbVal": 0, "maxDbVal": 1}]
    for request, user, says in (
        (request_of(algorithm="TPE", warmStart=["nothing"]), ANN, "names of studies of yours"),
        (request_of(algorithm="TPE", warmStart=["earlier"]), BOB, "names of studies of yours"),
        (request_of(algorithm="TPE", warmStart=["earlier"], hyperParams=other_space), ANN, "in this space"),
        (request_of(algorithm="TPE", warmStart=["earlier"], objectiveMetric="accuracy"), ANN, "these objectives"),
        (request_of(algorithm="Random", warmStart=["earlier"]), ANN, "none with Random"),
    ):
        with pytest.raises(ServiceError, match=says) as caught:
            await known_from(room, request, user)
        assert caught.value.metadata["field"] == "algoDef.warmStart"


def two_losses(values: Mapping[str, Any]) -> str:
    """The one falls with the rate, the other rises with it; above 0.5 both rise."""
    rate = float(values["rate"])
    return json.dumps([{"step": 1, "loss": abs(rate - 0.5), "gain": 1 - rate}])


async def test_several_objectives_have_a_front(database: Database) -> None:
    room = StudiesRoom(database, two_losses)
    more = [{"metric": "gain", "objective": "maximize"}]
    uid = await room.add(request=request_of(maxJobNum=40, maxParalleJob=4, algorithm="TPE", objectives=more))
    study = await room.to_the_end(uid)
    trials = await room.trials(uid)
    assert study.best == min(trials, key=lambda trial: trial.objectives[0]).number
    best = await ParetoFront(room.studies, room.algorithms, NoFronts())(study, TrialPage())
    losses = [(trial.objectives[0], -trial.objectives[1]) for trial in best]
    assert losses == sorted(losses)
    assert best[0].number == study.best
    # Where one falls and the other rises everything is worth choosing from; beyond, nothing is.
    assert len(best) > 1
    assert all(float(trial.values["rate"]) <= float(best[0].values["rate"]) for trial in best)


def three_losses(values: Mapping[str, Any]) -> str:
    rate = float(values["rate"])
    return json.dumps([{"step": 1, "loss": abs(rate - 0.5), "gain": 1 - rate, "size": rate * rate}])


async def test_a_front_of_more_objectives_is_found_once_for_all_who_ask(database: Database) -> None:
    room = StudiesRoom(database, three_losses)
    more = [{"metric": "gain", "objective": "maximize"}, {"metric": "size", "objective": "minimize"}]
    uid = await room.add(request=request_of(maxJobNum=20, maxParalleJob=4, objectives=more))
    study = await room.to_the_end(uid)
    processes, asked = FrontProcesses(), []

    class Fronts:
        async def front(self, losses: Sequence[tuple[int, Sequence[float]]], most: int) -> Sequence[int]:
            asked.append(most)
            return await processes.front(losses, most)

    find = ParetoFront(room.studies, room.algorithms, Fronts())
    whole, page, again = await asyncio.gather(
        *(find(study, one) for one in (TrialPage(), TrialPage(1, 2), TrialPage()))
    )
    assert asked == [MAX_SHOWN_TRIALS]
    trials = await room.trials(uid)
    losses = {trial.number: (trial.objectives[0], -trial.objectives[1], trial.objectives[2]) for trial in trials}
    expected = {number for number, one in losses.items() if not any(beats(other, one) for other in losses.values())}
    assert 2 < len(expected) < 20
    assert {trial.number for trial in whole} == expected
    assert [losses[trial.number] for trial in whole] == sorted(losses[trial.number] for trial in whole)
    assert (whole[1:3], whole) == (page, again)
    await find(study, TrialPage())
    assert len(asked) == 2


async def test_who_asks_for_a_front_need_not_stay(database: Database) -> None:
    room = StudiesRoom(database, two_losses)
    more = [{"metric": "gain", "objective": "maximize"}]
    study = await room.to_the_end(await room.add(request=request_of(maxJobNum=5, objectives=more)))
    find = ParetoFront(room.studies, room.algorithms, NoFronts())
    first, second = (asyncio.ensure_future(find(study, TrialPage())) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second


async def test_a_front_that_is_not_found_is_told() -> None:
    losses = [(number, [1.0, 2.0, 3.0]) for number in range(5)]
    dies = FrontProcesses(command=(sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit(3)"))
    with pytest.raises(ServiceError, match="front of 5 trials cannot be found: ended itself with exit code 3"):
        await dies.front(losses, 10)
    hangs = FrontProcesses(command=(sys.executable, "-c", "import time; time.sleep(1000)"), limit_seconds=0.2)
    with pytest.raises(ServiceError, match="no answer within") as caught:
        await hangs.front(losses, 10)
    assert caught.value.code is Code.UNAVAILABLE
    assert await FrontProcesses().front(losses, 3) == [0, 1, 2]


class NoFronts:
    """Fronts of two losses need no process."""

    async def front(self, losses: Sequence[tuple[int, Sequence[float]]], most: int) -> Sequence[int]:
        raise AssertionError


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(mine <= its for mine, its in zip(one, other, strict=True))


LOSS = st.integers(0, 4)
WIDTHS = st.integers(1, 4)
VALUES = WIDTHS.flatmap(lambda width: st.lists(st.tuples(*[LOSS] * width), max_size=25))


@given(VALUES, st.integers(1, 30))
def test_the_front_is_what_nothing_beats(values: list[tuple[int, ...]], most: int) -> None:
    on_front = [number for number, one in enumerate(values) if not any(beats(other, one) for other in values)]
    expected = sorted(on_front, key=lambda number: (values[number], number))
    losses = [(number, [float(value) for value in one]) for number, one in enumerate(values)]
    if not values or len(values[0]) <= 2:
        assert front(losses) == expected
    if not values or len(values[0]) >= 2:
        assert front_of_many(losses, most) == expected[:most]


@pytest.mark.parametrize("order", list(permutations((1, 2, 3))))
async def test_of_equally_good_trials_the_first_is_the_best_whichever_ended_first(
    database: Database, order: tuple[int, ...]
) -> None:
    room = StudiesRoom(database)
    uid = await room.add("ties", request=request_of(maxJobNum=3, maxParalleJobNum=3))
    await room.studies.begin(uid, utc_now())
    trials = {number: Trial(uid, number, f"{uid[:20]}{number}", {"rate": 0.5}) for number in (1, 2, 3)}
    assert await room.studies.append(uid, 0, list(trials.values()), is_exhausted=False)
    losses = {1: 1.0, 2: 0.0, 3: 0.0}
    for number in order:
        trials[number].objectives = (losses[number],)
        trials[number].end(TrialStatus.FINISHED, "", utc_now())
        await room.studies.save(uid, [trials[number]], losses)
    study = await room.study(uid)
    assert (study.best, study.best_loss) == (2, 0.0)
    # Only what is better lets a study that has patience go on.
    assert study.improved_at == 1 + min(order.index(2), order.index(3))
