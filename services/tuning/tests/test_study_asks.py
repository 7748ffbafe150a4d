"""An algorithm that waits for a trial is asked again when one has ended, whenever that was."""

from __future__ import annotations

import asyncio

import pytest
from servicekit.database import Database
from studies_room import InThisProcess, StudiesRoom, request_of
from tuning_service.domain.evaluation import Answer, Problem, TrialState
from tuning_service.domain.study import Status, Study
from tuning_service.storage import MIGRATIONS
from tuning_service.usecases.ports import History


class InGenerations(InThisProcess):
    """Suggests nothing while one of its trials runs, and takes its time to say so."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.is_thinking = asyncio.Event()

    async def ask(self, study: Study, algorithm: str, problem: Problem, history: History, count: int) -> Answer:
        known, _, _ = await history.since(0)
        self.is_thinking.set()
        await self.may_answer.wait()
        if any(trial.state is TrialState.PENDING for trial in known):
            return Answer(())
        return await super().ask(study, algorithm, problem, history, count)


@pytest.mark.parametrize("ends_while_it_thinks", [False, True])
async def test_what_ends_while_an_algorithm_thinks_is_told_to_it(database_url: str, ends_while_it_thinks: bool) -> None:
    database = Database(database_url, "tuning")
    await database.migrate(MIGRATIONS)
    room = StudiesRoom(database)
    room.suggestions = algorithm = InGenerations()
    room.restart()
    uid = await room.add(request=request_of(maxJobNum=4, maxParalleJobNum=2))
    first, second = await room.until_running(uid, 2)
    room.jobs.end(first.uid, "FINISHED")
    algorithm.is_thinking.clear()
    if ends_while_it_thinks:
        algorithm.may_answer.clear()
    await room.step()
    await algorithm.is_thinking.wait()
    room.jobs.end(second.uid, "FINISHED")
    await room.step()
    algorithm.may_answer.set()
    study = await room.to_the_end(uid)
    assert (study.status, study.counts.finished) == (Status.FINISHED, 4)
    await room.loop.close()
    await database.close()
