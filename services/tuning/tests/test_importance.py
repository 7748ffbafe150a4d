"""What each parameter explains of the losses, also through a process and for a whole study."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from servicekit.times import utc_now
from studies_room import InThisProcess, StudiesRoom, request_of, study_of
from thinking_room import Table, thinking, until
from tuning_service.algorithms.base import Answer, Evaluation, Problem, Suggestion, TrialState
from tuning_service.algorithms.importance import importance
from tuning_service.algorithms.registry import ALGORITHMS, make_algorithm, read_settings
from tuning_service.domain.space import Choice, Continuous, DataType, Levels, Place, Space
from tuning_service.domain.study import Study
from tuning_service.suggestions.importance_process import ImportanceProcesses
from tuning_service.suggestions.suggestions import Suggestions
from tuning_service.usecases import studies as limits
from tuning_service.usecases.ports import History
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


async def test_a_process_says_it_page_by_page() -> None:
    table = Table()
    for one in trials(60):
        table.add(Answer([Suggestion(one.place)]))
        table.end(one.number, one.losses[0] if one.losses else None)
    table.page = 25
    assert await ImportanceProcesses().importance(PROBLEM, table) == importance(PROBLEM, trials(60))


class BuiltIn:
    """`ports.Algorithms` with no other ones."""

    def built_in(self) -> tuple[str, ...]:
        return tuple(ALGORITHMS)


async def test_one_that_takes_too_long_ends_and_searches_wait_for_none() -> None:
    table = Table()
    table.add(Answer([Suggestion((0.5, 1, 1, 0.5))]))
    stuck = (sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(10**6)")
    with pytest.raises(ServiceError, match=r"cannot be found: answered with something that is no object") as caught:
        await ImportanceProcesses(command=stuck).importance(PROBLEM, table)
    assert caught.value.code is Code.UNAVAILABLE
    silent = (sys.executable, "-c", "import time; time.sleep(10**6)")
    with pytest.raises(ServiceError, match=r"cannot be found: no answer within 0.1 s"):
        await ImportanceProcesses(command=silent, limit_seconds=0.1).importance(PROBLEM, table)
    random = replace(PROBLEM, settings=read_settings(ALGORITHMS["Random"], {}))
    async with thinking(processes=1) as built_in:
        suggestions = Suggestions(BuiltIn(), built_in, None, ImportanceProcesses(command=silent))  # type: ignore[arg-type]
        read = len(table.read)
        asking = asyncio.create_task(suggestions.importance(study_of(), PROBLEM, table))
        await until(lambda: len(table.read) > read)
        assert len((await suggestions.ask(study_of(), "Random", random, Table(), 3)).suggestions) == 3
        assert not asking.done()
        asking.cancel()
        await asyncio.wait({asking})


class Counted(InThisProcess):
    """Counts questions, and answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.questions = 0
        self.may_answer = asyncio.Event()

    async def importance(self, study: Study, problem: Problem, history: History) -> Mapping[str, float]:
        self.questions += 1
        await self.may_answer.wait()
        return await super().importance(study, problem, history)


async def test_the_same_question_is_thought_about_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    room = StudiesRoom(database)
    suggestions = Counted()
    ask = Importance(room.studies, room.algorithms, suggestions)
    study = await room.to_the_end(await room.add(request=request_of(maxJobNum=12, maxParalleJobNum=4)))
    first, second = asyncio.create_task(ask(study)), asyncio.create_task(ask(study))
    await until(lambda: suggestions.questions > 0)
    # One who goes takes it from nobody.
    first.cancel()
    await asyncio.wait({first})
    suggestions.may_answer.set()
    assert await second == await ask(study) == [("rate", 1.0)]
    assert suggestions.questions == 1
    # Another trial has ended, or may have after another beginning.
    study.counts.finished += 1
    await ask(study)
    study.resumed_at = utc_now()
    await ask(study)
    assert suggestions.questions == 3
    # The newest are known, and what went wrong is not.
    monkeypatch.setattr(limits, "KEPT_IMPORTANCES", 2)
    for ended, asked in ((20, 4), (13, 4), (20, 4), (30, 5), (13, 6)):
        study.counts.finished = ended
        await ask(study)
        assert suggestions.questions == asked, ended
    few = await room.study(await room.add("few", request=request_of(maxJobNum=2)))
    for asked in (7, 8):
        with pytest.raises(ServiceError, match="at least 8 finished trials"):
            await ask(few)
        assert suggestions.questions == asked


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
