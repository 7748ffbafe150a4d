"""Studies whose algorithm was removed are stopped, and looked at, as others are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
from servicekit.database import Database
from servicekit.errors import ServiceError
from servicekit.identity import Identity, acting_as
from servicekit.times import utc_now
from studies_room import InThisProcess, StudiesRoom, request_of
from tuning_service.domain.evaluation import Answer, Problem, Suggestion
from tuning_service.domain.study import Kind, Status, Study, TrialStatus
from tuning_service.storage.plugin_folders import DiskPluginFolders
from tuning_service.usecases.algorithms import ManageAlgorithms
from tuning_service.usecases.ports import History, InstalledAlgorithm, TrialPage
from tuning_service.usecases.studies import Budget, ChangeStudies, Importance, ParetoFront


class PlayedPlugin(InThisProcess):
    """What a plug-in answers: values, and no places."""

    async def ask(self, study: Study, algorithm: str, problem: Problem, history: History, count: int) -> Answer:
        first = len((await history.since(0))[0])
        return Answer([Suggestion((), {}, {"rate": (first + index) / 20}) for index in range(count)])


class NoFronts:
    async def front(self, losses: Sequence[tuple[int, Sequence[float]]], most: int) -> Sequence[int]:
        raise AssertionError


@pytest.fixture
async def room(database: Database) -> AsyncIterator[StudiesRoom]:
    made = StudiesRoom(database)
    made.suggestions = PlayedPlugin()
    made.restart()
    await made.algorithms.add(InstalledAlgorithm("mine", "u", "Admin", utc_now()))
    yield made
    await made.loop.close()


async def test_its_trials_are_stopped_whatever_was_restarted_since(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(algorithm="mine", maxJobNum=5), algorithm="mine")
    (running,) = await room.until_running(uid, 1)
    room.jobs.is_away = True
    assert await room.studies.request_stop(uid, room.now(), at_once=True)
    await room.steps(2)
    await room.algorithms.remove("mine")
    room.jobs.is_away = False
    await room.loop.close()
    room.restart()
    await room.steps(4)
    assert room.jobs.stopped == [running.uid]
    assert [trial.status for trial in await room.trials(uid)] == [TrialStatus.STOPPED]
    study = await room.study(uid)
    assert (study.status, await room.studies.tended()) == (Status.STOPPED, [])
    # To go on it would be needed.
    changes = ChangeStudies(
        Kind.HYPER_SEARCH, room.studies, room.algorithms, room.now, wake=lambda: None, wake_removals=lambda: None
    )
    with pytest.raises(ServiceError, match=r"algoDef\.algorithm: 'mine' is not valid"):
        await changes.restart(study, Budget())


async def test_its_front_and_importance_can_be_asked_for(room: StudiesRoom) -> None:
    study = await room.to_the_end(
        await room.add(request=request_of(algorithm="mine", maxJobNum=12, maxParalleJobNum=3), algorithm="mine")
    )
    await room.algorithms.remove("mine")
    assert study.counts.finished == 12
    best = await ParetoFront(room.studies, room.algorithms, NoFronts())(study, TrialPage())
    assert [trial.number for trial in best] == [study.best]
    found = await Importance(room.studies, room.algorithms, room.suggestions)(study)
    assert found == [("rate", pytest.approx(1.0))]


async def test_an_algorithm_is_in_use_while_one_of_its_trials_runs(
    room: StudiesRoom, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folders = DiskPluginFolders(tmp_path_factory.mktemp("home"), ())
    algorithms = ManageAlgorithms(room.algorithms, room.studies, folders, room.now)
    uid = await room.add(request=request_of(algorithm="mine", maxJobNum=5), algorithm="mine")
    await room.until_running(uid, 1)
    room.jobs.is_away = True
    assert await room.studies.request_stop(uid, room.now(), at_once=True)
    await room.steps(2)
    with acting_as(Identity("Admin", is_admin=True)):
        with pytest.raises(ServiceError, match="HPO task 'first', whose trials are being stopped") as caught:
            await algorithms.remove("mine")
        assert caught.value.reason == "IN_USE"
        room.jobs.is_away = False
        await room.steps(3)
        await algorithms.remove("mine")
    assert await room.algorithms.installed() == []
