"""What each parameter explains of the losses, also through the process that thinks and for a whole study."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from servicekit.database import Database
from servicekit.errors import ServiceError
from studies_room import StudiesRoom, request_of
from thinking_room import Table, thinking
from tuning_service.algorithms.base import Answer, Evaluation, Problem, Suggestion, TrialState
from tuning_service.algorithms.importance import importance
from tuning_service.algorithms.registry import make_algorithm
from tuning_service.domain.space import Choice, Continuous, DataType, Levels, Place, Space
from tuning_service.storage import MIGRATIONS
from tuning_service.usecases.studies import Importance

SPACE = Space(
    (
        Continuous("much", 0.0, 1.0),
        Levels("little", DataType.INT, tuple(range(5))),
        Choice("some", DataType.STR, ("a", "b", "c")),
        Continuous("nothing", 0.0, 1.0),
    )
)
PROBLEM = Problem(SPACE, {}, seed=5)


def loss(place: Place) -> float:
    return 4 * place[0] + 0.2 * place[1] + (1.5 if place[2] == 1 else 0.0)


def trials(count: int) -> list[Evaluation]:
    drawn = make_algorithm("Random", Problem(SPACE, {}, seed=1)).ask([], count).suggestions
    return [
        Evaluation(number + 1, one.place, TrialState.FINISHED, (loss(one.place),)) for number, one in enumerate(drawn)
    ]


def test_what_makes_more_difference_is_more_important() -> None:
    found = importance(PROBLEM, trials(200))
    assert sum(found.values()) == pytest.approx(1.0)
    assert sorted(found, key=lambda name: -found[name])[:2] == ["much", "some"]
    assert found["much"] > 0.5
    assert found["nothing"] < 0.02 < found["some"]
    assert found == importance(PROBLEM, trials(200))


def test_few_trials_and_failures_say_nothing() -> None:
    assert importance(PROBLEM, trials(7)) == {}
    failed = [Evaluation(number, (), TrialState.FAILED) for number in range(8, 100)]
    assert importance(PROBLEM, [*trials(7), *failed]) == {}
    assert importance(Problem(Space(()), {}, seed=1), []) == {}


async def test_the_process_that_thinks_says_it_page_by_page() -> None:
    table = Table()
    for one in trials(60):
        table.add(Answer([Suggestion(one.place)]))
        table.end(one.number, one.losses[0] if one.losses else None)
    table.page = 25
    async with thinking() as suggestions:
        assert await suggestions.importance("study", PROBLEM, table) == importance(PROBLEM, trials(60))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, "tuning")
    await database.migrate(MIGRATIONS)
    yield database
    await database.close()


def text_of(values: Mapping[str, Any]) -> str:
    return json.dumps([{"step": 1, "loss": values["much"] + 0.05 * values["little"]}])


async def test_of_a_study(database: Database) -> None:
    room = StudiesRoom(database, text_of)
    much = {"name": "much", "type": "Range", "dataType": "double", "minDbVal": 0, "maxDbVal": 1}
    little = {"name": "little", "type": "Discrete", "dataType": "int", "discreteIntVal": [1, 2, 3]}
    uid = await room.add(request=request_of(hyperParams=[little, much], maxJobNum=30, maxParalleJob=5))
    ask = Importance(room.studies, room.algorithms, room.suggestions)
    await room.until_running(uid, 5)
    with pytest.raises(ServiceError, match="at least 8 finished trials"):
        await ask(await room.study(uid))
    study = await room.to_the_end(uid)
    found = await ask(study)
    assert [name for name, _ in found] == ["much", "little"]
    assert found[0][1] > 0.8
