"""Tunings have what searches have: pages of experiments, the front, importance, and what their users should know."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from dlmesh.tuning.v1 import tuning_pb2
from servicekit.database import Database
from servicekit.errors import ServiceError, not_found
from servicekit.identity import Identity, acting_as
from servicekit.times import utc_now
from studies_room import StudiesRoom, request_of
from testkit.services import collect
from tuning_service.api.model_tuning_servicer import ModelTuningServicer
from tuning_service.domain.plan import Plan
from tuning_service.domain.study import Kind, Study
from tuning_service.suggestions.pareto_front import FrontProcesses
from tuning_service.usecases.studies import PAGE_TRIALS, ChangeStudies, FindStudies, Importance, ParetoFront
from tuning_service.usecases.tunings import CheckedPlan, StartTuning, UseResult

ANN, BOB = Identity("ann"), Identity("bob")
WARNING = "resDef.gpuNum: local has no GPUs; trials run on its slots"


class PlayedModels:
    """`tunings.Models` with one model."""

    async def uid_of(self, name: str) -> str:
        if name != "digits":
            raise not_found("model", name)
        return "m1"


class PlayedTrainings:
    """`tunings.Trainings` that can run anything."""

    async def check_plan(self, study: Study, plan: Plan) -> CheckedPlan:
        return CheckedPlan("m1", "g", "local", [WARNING])


def two_losses(values: Mapping[str, Any]) -> str:
    rate = float(values["rate"])
    return json.dumps([{"step": 1, "loss": abs(rate - 0.5), "seconds": rate}])


@pytest.fixture
async def room(database: Database) -> AsyncIterator[StudiesRoom]:
    made = StudiesRoom(database, two_losses)
    yield made
    await made.loop.close()


def servicer_of(room: StudiesRoom) -> ModelTuningServicer:
    nothing = lambda: None  # noqa: E731
    kind = Kind.MODEL_TUNING
    models, trainings = PlayedModels(), PlayedTrainings()
    return ModelTuningServicer(
        StartTuning(room.studies, room.algorithms, trainings, utc_now, nothing),  # type: ignore[arg-type]
        FindStudies(kind, room.studies),
        ChangeStudies(kind, room.studies, room.algorithms, utc_now, wake=nothing, wake_removals=nothing),
        UseResult(room.studies, trainings, models),  # type: ignore[arg-type]
        ParetoFront(room.studies, room.algorithms, FrontProcesses()),
        Importance(room.studies, room.algorithms, room.suggestions),
        models,  # type: ignore[arg-type]
        utc_now,
    )


async def test_tunings_have_pages_a_front_and_importance(room: StudiesRoom) -> None:
    servicer = servicer_of(room)
    request = request_of(maxJobNum=30, maxParalleJobNum=5, objectives=[{"metric": "seconds", "objective": "minimize"}])
    of_model = {"kind": Kind.MODEL_TUNING, "model_uid": "m1", "model_name": "digits"}
    await room.to_the_end(await room.add("rates", request=request, **of_model))

    async def page(**more: Any) -> list[tuning_pb2.TuningExperiment]:
        asked = tuning_pb2.ListTuningExperimentsRequest(model_name="digits", name="rates", **more)
        return await collect(servicer.ListTuningExperiments(asked, None))

    with acting_as(ANN):
        everything = await page()
        assert [one.id for one in everything] == list(range(1, 31))
        assert everything[0].parameters[0].type == "Fix"
        assert [one.id for one in await page(start=10, length=2)] == [11, 12]
        assert [one.id for one in await page(sort="-id", length=1)] == [30]
        best = await page(sort="metricVal", length=3)
        assert [one.metric_value for one in best] == sorted(one.metric_value for one in everything)[:3]
        assert await page(state="failed") == []
        front = await page(pareto=True)
        assert front[0] == best[0]
        assert 1 < len(front) < 30
        assert await page(pareto=True, start=1, length=1) == front[1:2]
        parts = await collect(
            servicer.ListTuningParameterImportances(
                tuning_pb2.ListTuningParameterImportancesRequest(model_name="digits", name="rates"), None
            )
        )
        assert [(one.name, one.importance) for one in parts] == [("rate", 1.0)]
        for wrong, field in (({"sort": "best"}, "sort"), ({"state": "GONE"}, "state"), ({"start": -1}, "start")):
            with pytest.raises(ServiceError) as caught:
                await page(**wrong)
            assert caught.value.metadata["field"] == field
        with pytest.raises(ServiceError, match="length: 10001"):
            await page(length=10001, pareto=True)
    with acting_as(BOB), pytest.raises(ServiceError, match="rates"):
        await page()


async def test_a_page_is_short_unless_more_is_asked_for(room: StudiesRoom) -> None:
    request = request_of(maxJobNum=PAGE_TRIALS + 5, maxParalleJobNum=50)
    of_model = {"kind": Kind.MODEL_TUNING, "model_uid": "m1", "model_name": "digits"}
    await room.to_the_end(await room.add("rates", request=request, **of_model))
    servicer = servicer_of(room)
    with acting_as(ANN):
        for length, shown in ((0, PAGE_TRIALS), (1000, PAGE_TRIALS + 5)):
            asked = tuning_pb2.ListTuningExperimentsRequest(model_name="digits", name="rates", length=length)
            assert len(await collect(servicer.ListTuningExperiments(asked, None))) == shown
        # As older clients have it: all of them, up to 1,000.
        one = await servicer.GetModelTuning(tuning_pb2.GetModelTuningRequest(model_name="digits", name="rates"), None)
        assert len(one.search.experiments) == PAGE_TRIALS + 5
        listing = servicer.ListModelTunings(tuning_pb2.ListModelTuningsRequest(model_name="digits", length=0), None)
        (listed,) = await collect(listing)
        assert (len(listed.search.experiments), listed.search.best) == (0, one.search.best)


async def test_what_users_should_know_is_told(room: StudiesRoom) -> None:
    servicer = servicer_of(room)
    rate = tuning_pb2.SearchParameter(
        name="rate", type="Range", data_type="double", min_double=0.0, max_double=1.0, user_defined=True
    )
    momentum = tuning_pb2.SearchParameter(name="momentum", type="Fix", data_type="double", fixed_value="0.9")
    algorithm = tuning_pb2.AlgorithmSettings(
        algorithm="random", max_jobs=1, objective="MINIMIZE", objective_metric="loss"
    )
    asked = tuning_pb2.StartModelTuningRequest(
        model_name="digits", name="rates", parameters=[rate, momentum], algorithm=algorithm
    )
    with acting_as(ANN):
        await servicer.StartModelTuning(asked, None)
        (study,) = await room.studies.tended()
        await room.to_the_end(study.uid)
        request = tuning_pb2.GetModelTuningRequest(model_name="digits", name="rates")
        detail = await servicer.GetModelTuning(request, None)
        # Whatever it said in the meantime.
        assert list(detail.warnings) == [WARNING]
        assert detail.search.progress == "1/1"
        # Which of them are the program's own is as it was asked for.
        flags = {one.name: one.user_defined for one in detail.search.experiments[0].parameters}
        assert flags == {"rate": True, "momentum": False}
        assert [one.user_defined for one in detail.input.parameters] == [True, False]
        # A restart takes fractions of minutes, which the description of what was asked for has no room for.
        budget = tuning_pb2.RestartModelTuningRequest(
            model_name="digits", name="rates", max_jobs=2, max_run_minutes=7.5
        )
        await servicer.RestartModelTuning(budget, None)
        detail = await servicer.GetModelTuning(request, None)
        assert (detail.search.progress, detail.input.algorithm.max_run_minutes) == ("1/2", 8)
