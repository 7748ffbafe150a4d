"""What lists, pages and passes read of studies: as much as they show, however large studies are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from servicekit.identity import Identity, acting_as
from servicekit.times import utc_now
from studies_room import InThisProcess, StudiesRoom, request_of
from tuning_service.api.mapping import experiments, hyper_search_detail
from tuning_service.api.tuning_mapping import tuning_detail
from tuning_service.domain.evaluation import Answer, Evaluation, Problem, Suggestion
from tuning_service.domain.fields import Fields
from tuning_service.domain.plan import outline
from tuning_service.domain.space import Value
from tuning_service.domain.study import Kind, Status, Study, Trial, TrialStatus
from tuning_service.storage import studies as storage
from tuning_service.storage.studies import SHOWN_REQUEST_CHARACTERS
from tuning_service.suggestions.pareto_front import FrontProcesses
from tuning_service.usecases import studies as limits
from tuning_service.usecases.ports import History, InstalledAlgorithm, TrialPage
from tuning_service.usecases.start_hyper_search import read_request
from tuning_service.usecases.studies import Budget, FindStudies, ParetoFront, StudyView
from tuning_service.usecases.trials import TrialHistory

ANN, BOB = Identity("ann"), Identity("bob")


async def filled(room: StudiesRoom, name: str, trials: int, **more: Any) -> str:
    """A study with so many finished trials, the second of which is the best."""
    request = more.pop("request", request_of(maxJobNum=trials))
    plan = await read_request(Fields("", request), room.algorithms, Kind.HYPER_SEARCH)
    uid = await room.add(name, request=request, **more, **outline(Fields("", request), plan))
    await room.studies.begin(uid, utc_now())
    made = [Trial(uid, number, f"{uid[:20]}{number}", {"rate": 0.5}) for number in range(1, trials + 1)]
    assert await room.studies.append(uid, 0, made, is_exhausted=True)
    for trial in made:
        trial.objectives, trial.curve = (abs(trial.number - 2.0),), [(1.0, 2.0)]
        trial.end(TrialStatus.FINISHED, "", utc_now())
    await room.studies.save(uid, made, {trial.number: trial.objectives[0] for trial in made})
    return uid


async def ended(room: StudiesRoom, uid: str) -> None:
    study = await room.study(uid)
    study.end(Status.FINISHED, "", utc_now())
    assert await room.studies.end(study)


async def views(room: StudiesRoom, length: int | None = None) -> Mapping[str, StudyView]:
    with acting_as(ANN):
        return {
            view.study.name: view for view in await FindStudies(Kind.HYPER_SEARCH, room.studies).views(length=length)
        }


def numbers(view: StudyView) -> list[int]:
    return [trial.number for trial in view.trials]


async def test_lists_show_some_of_each_and_not_more_in_all(room: StudiesRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(room, "small", 3)
    await filled(room, "large", 30)
    await filled(room, "of-bob", 3, owner="bob")
    monkeypatch.setattr(limits, "LISTED_TRIALS", 10)
    shown = await views(room)
    assert (numbers(shown["small"]), numbers(shown["large"])) == ([1, 2, 3], list(range(21, 31)))
    # The best one is there, whatever else is.
    assert [shown[name].best.number for name in shown] == [2, 2]  # type: ignore[union-attr]
    assert shown["large"].best.objectives == (0.0,)  # type: ignore[union-attr]
    monkeypatch.setattr(limits, "MAX_LISTED_TRIALS", 8)
    assert [numbers(view) for view in (await views(room)).values()] == [[1, 2, 3], [27, 28, 29, 30]]
    monkeypatch.setattr(limits, "MAX_LISTED_TRIALS", 1)
    assert [numbers(view) for view in (await views(room)).values()] == [[], []]
    assert (await views(room, 0))["large"].best.number == 2  # type: ignore[union-attr]
    with pytest.raises(ServiceError, match="length: 11 is not valid; allowed: 0 to 10"):
        await views(room, 11)


async def large(room: StudiesRoom, name: str, trials: int, **more: Any) -> str:
    """A study whose trials have 5,000 characters of parameters each."""
    uid = await room.add(name, request=request_of(maxJobNum=trials), **more)
    await room.studies.begin(uid, utc_now())
    values: dict[str, Value] = {"rate": 0.5, "text": "x" * 5000}
    made = [Trial(uid, number, f"{uid[:20]}{number}", values, place=(0.5,)) for number in range(1, trials + 1)]
    for trial in made:
        assert await room.studies.append(uid, trial.number - 1, [trial], is_exhausted=True)
    return uid


async def test_pages_end_where_trials_are_large(room: StudiesRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = await large(room, "large", 10)
    study, find = await room.study(uid), FindStudies(Kind.HYPER_SEARCH, room.studies)
    assert len((await find.view(study)).trials) == 10
    monkeypatch.setattr(limits, "SHOWN_BYTES", 16_000)
    # The newest ones, or those from there on.
    assert numbers(await find.view(study)) == [8, 9, 10]
    assert numbers(await find.view(study, start=4)) == [5, 6, 7]
    assert [trial.number for trial in await find.page(study, TrialPage(9, 5))] == [10]
    assert await find.page(study, TrialPage(10, 5)) == []
    # One is shown in any case.
    monkeypatch.setattr(limits, "SHOWN_BYTES", 10)
    assert numbers(await find.view(study)) == [10]


async def test_pages_of_fronts_end_where_trials_are_large(room: StudiesRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = await large(room, "large", 4)
    trials = await room.trials(uid)
    for trial in trials:
        trial.objectives = (1.0,)
        trial.end(TrialStatus.FINISHED, "", utc_now())
    await room.studies.save(uid, trials, {trial.number: 1.0 for trial in trials})
    study, front = await room.study(uid), ParetoFront(room.studies, room.algorithms, FrontProcesses())
    assert [trial.number for trial in await front(study, TrialPage(1, 10))] == [2, 3, 4]
    monkeypatch.setattr(limits, "SHOWN_BYTES", 11_000)
    assert [trial.number for trial in await front(study, TrialPage(1, 10))] == [2, 3]
    assert await front(study, TrialPage(4, 10)) == []


async def test_lists_end_where_trials_are_large(room: StudiesRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    await large(room, "first", 10, uid="a" * 32)
    await large(room, "second", 3, uid="b" * 32)
    await filled(room, "small", 5, uid="c" * 32)
    assert [len(view.trials) for view in (await views(room)).values()] == [10, 3, 5]
    monkeypatch.setattr(storage, "LISTED_BYTES", 26_500)
    shown = {name: numbers(view) for name, view in (await views(room)).items()}
    # Of each as new ones as of the others; the best one, which is an older one, does not count as one of these.
    assert shown == {"first": [8, 9, 10], "second": [2, 3], "small": [4, 5]}
    assert (await views(room))["small"].best.number == 2  # type: ignore[union-attr]
    monkeypatch.setattr(storage, "LISTED_BYTES", 10)
    assert [numbers(view) for view in (await views(room)).values()] == [[], [], []]


async def test_algorithms_are_told_what_they_use_in_pages_that_hold_it(
    room: StudiesRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = await room.study(await large(room, "large", 10))
    plan = await read_request(Fields("", study.request), room.algorithms, Kind.HYPER_SEARCH)
    monkeypatch.setattr(storage, "READ_BYTES", 16_000)
    places, _, is_newest = await TrialHistory(room.studies, study, plan).since(0)
    assert ([trial.number for trial in places], is_newest) == (list(range(1, 11)), True)
    assert {(trial.place, len(trial.values or {})) for trial in places} == {((0.5,), 0)}
    told: list[Evaluation] = []
    since, is_newest = 0, False
    history = TrialHistory(room.studies, study, plan, with_values=True)
    while not is_newest:
        page, since, is_newest = await history.since(since)
        assert 1 <= len(page) <= 3
        told += page
    assert [trial.number for trial in told] == list(range(1, 11))
    assert {len(str((trial.values or {})["text"])) for trial in told} == {5000}


class Looking(InThisProcess):
    """Keeps what the first trial was told to be."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    async def ask(self, study: Study, algorithm: str, problem: Problem, history: History, count: int) -> Answer:
        trials, _, _ = await history.since(0)
        self.seen += [trial.values for trial in trials if trial.number == 1]
        return Answer([Suggestion((0.5,), values={"rate": 0.5})])


async def test_only_installed_algorithms_are_told_values(room: StudiesRoom) -> None:
    room.suggestions = looking = Looking()
    room.restart()
    await room.algorithms.add(InstalledAlgorithm("Own", "u", "ann", utc_now()))
    for algorithm, told in (("Random", {}), ("Own", {"rate": 0.5})):
        await room.to_the_end(await room.add(algorithm, request=request_of(algorithm=algorithm, maxJobNum=2)))
        assert looking.seen == [told]
        looking.seen.clear()


async def test_a_list_is_three_queries(room: StudiesRoom, database: Database) -> None:
    for index in range(5):
        await filled(room, f"s{index}", 3)
    asked: list[str] = []
    sa.event.listen(
        database.engine.sync_engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, *rest: asked.append(statement),
    )
    assert len(await views(room)) == 5
    selects = [statement for statement in asked if statement.startswith("SELECT")]
    assert len(selects) == 3
    assert not any("curve" in statement for statement in selects)


async def test_large_requests_are_in_no_list(room: StudiesRoom) -> None:
    values = [f"{number:05}" for number in range(SHOWN_REQUEST_CHARACTERS // 8)]
    parameter = {"name": "word", "type": "Discrete", "dataType": "str", "discreateStrVal": values}
    request = request_of(hyperParams=[parameter], maxJobNum=4)
    uid = await filled(room, "large", 4, request=request)
    await filled(room, "small", 4)
    study = (await views(room))["large"].study
    assert (study.request, study.known) == ({}, ())
    whole = await room.study(uid)
    assert whole.request == request
    # What a list says of it is the same all the same.
    listed, detail = (hyper_search_detail(StudyView(one, [], None), utc_now()) for one in (study, whole))
    listed.duration = detail.duration
    assert listed == detail
    assert (detail.algorithm, detail.objective, detail.progress) == ("Random", "Minimize", "4/4")
    assert (await views(room))["small"].study.request == request_of(maxJobNum=4)


async def test_passes_read_a_request_once(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=20), known=[[[0.5], [1.0]]])
    (slim,) = await room.studies.tended()
    assert (slim.uid, slim.request, slim.known) == (uid, {}, ())
    reads = []
    get = room.studies.get

    async def counted(uid: str) -> Any:
        reads.append(uid)
        return await get(uid)

    room.studies.get = counted  # type: ignore[method-assign]
    await room.until_running(uid, 1)
    await room.steps(5)
    assert reads == [uid]
    # After a restart it may be another one.
    room.restart()
    await room.steps(5)
    assert reads == [uid, uid]


async def test_a_restart_changes_what_lists_and_passes_know(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=2))
    await room.to_the_end(uid)
    await room.changes.restart(await room.study(uid), Budget(max_trials=5))
    assert (await room.study(uid)).most_trials == 5
    study = await room.to_the_end(uid)
    assert (study.counts.finished, study.status_message) == (5, "maxJobNum is reached")


async def test_a_restart_with_nothing_to_do_is_refused(room: StudiesRoom) -> None:
    uid = await filled(room, "full", 3)
    study = await room.study(uid)
    # One that was ended for its own sake does not run again.
    study.counts.stopped = 1
    study.end(Status.FINISHED, "", utc_now())
    with pytest.raises(ServiceError, match="more than the 3 that it has run") as caught:
        await room.changes.restart(study, Budget())
    assert caught.value.metadata["field"] == "maxJobNum"


async def test_all_are_deleted_or_none(room: StudiesRoom) -> None:
    first, second, third = [await filled(room, name, 1) for name in ("first", "second", "third")]
    of_bob = await filled(room, "of-bob", 1, owner="bob")
    for uid in (first, third):
        await ended(room, uid)
    with acting_as(ANN):
        with pytest.raises(ServiceError, match="HPO task 'second' runs; stop it first") as caught:
            await room.changes.delete_all()
        assert caught.value.code is Code.ABORTED
        assert len(await views(room)) == 3
        assert await room.studies.deleted() == []
        await ended(room, second)
        await room.changes.delete_all()
    assert await views(room) == {}
    assert {uid for uid, _ in await room.studies.deleted()} == {first, second, third}
    assert await room.studies.get(of_bob) is not None


async def test_what_is_shown_has_what_people_read(room: StudiesRoom) -> None:
    uid = await room.add(request=request_of(maxJobNum=1))
    await room.to_the_end(uid)
    (whole,) = await room.studies.page(uid, TrialPage())
    (slim,) = await room.studies.page(uid, TrialPage(), is_slim=True)
    assert (whole.place is None, len(whole.curve), slim.place, slim.curve) == (False, 2, None, ())
    assert (slim.values, slim.metrics, slim.objectives) == (whole.values, whole.metrics, whole.objectives)
    study = await room.study(uid)
    assert experiments(study, [slim]) == experiments(study, [whole])
    (one,) = experiments(study, [slim])
    assert json.loads(one.parameters[0].fixed_value) == whole.values["rate"]
    assert one.metrics[0].latest == one.metric_value


async def test_experiments_of_large_requests_are_shown_by_looking_at_those_only(
    room: StudiesRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [
        {
            "id": 7 + number,
            "fixedHyperParams": [
                {"name": "rate", "dataType": "double", "fixedVal": "0.5", "userDefined": number % 2 == 0},
                {"name": "layers", "dataType": "int", "fixedVal": str(number)},
            ],
        }
        for number in range(300)
    ]
    request = request_of(algorithm="ExperimentGridSearch", experiments=given)
    study = await room.study(await room.add(request=request, kind=Kind.MODEL_TUNING))
    looks = []
    reads = Fields.objects
    monkeypatch.setattr(Fields, "objects", lambda self, name: (looks.append(name), reads(self, name))[1])
    trials = [
        Trial("s", number, f"u{number}", {"rate": 0.5, "layers": 3}, notes={"experiment": number - 1, "id": 6 + number})
        for number in (1, 2)
    ]
    detail = tuning_detail(StudyView(study, trials, None), utc_now())
    assert [one.id for one in detail.search.experiments] == [7, 8]
    flags = [[one.user_defined for one in trial.parameters] for trial in detail.search.experiments]
    assert flags == [[True, False], [False, False]]
    assert [one.data_type for one in detail.search.experiments[0].parameters] == ["double", "int"]
    assert len(looks) < 10
