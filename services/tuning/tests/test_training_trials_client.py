"""What the training service answers of trials, as studies take it: the client against a played service."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.training.v1 import trials_pb2, trials_pb2_grpc
from servicekit.channels import Channels
from servicekit.errors import Code, ServiceError
from servicekit.server import Application
from testkit.services import running, settings_for
from tuning_service.clients import training_trials
from tuning_service.clients.training_trials import TrainingTrials
from tuning_service.domain.plan import Objective, Plan
from tuning_service.domain.results import Results
from tuning_service.domain.space import Space
from tuning_service.domain.study import Trial


class PlayedTrainings(trials_pb2_grpc.TrainingTrialServiceServicer):
    """Answers one trial a call, and none after `limit` calls."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self.answers: dict[str, trials_pb2.TrialMetrics] = {}
        self.asked: list[trials_pb2.ReadTrialMetricsRequest] = []

    async def ReadTrialMetrics(self, request: Any, context: Any) -> trials_pb2.ReadTrialMetricsResponse:
        if len(self.asked) == self.limit:
            await context.abort(grpc.StatusCode.INTERNAL, "no more")
        self.asked.append(request)
        first, *unread = request.trial_ids
        found = [self._asked_for(self.answers[first], request)] if first in self.answers else []
        return trials_pb2.ReadTrialMetricsResponse(trials=found, unread_trial_ids=unread)

    def _asked_for(self, trial: trials_pb2.TrialMetrics, request: Any) -> trials_pb2.TrialMetrics:
        shown = trials_pb2.TrialMetrics()
        shown.CopyFrom(trial)
        if request.only_these_series:
            del shown.curves[:]
            shown.curves.extend(curve for curve in trial.curves if curve.series in request.series)
        if not request.with_results:
            shown.results = shown.results_error = ""
        return shown


@pytest.fixture
def played() -> PlayedTrainings:
    return PlayedTrainings()


@pytest.fixture
async def trainings(tmp_path: Path, played: PlayedTrainings) -> AsyncIterator[TrainingTrials]:
    add = trials_pb2_grpc.add_TrainingTrialServiceServicer_to_server
    application = Application("training", [(add, played, "dlmesh.training.v1.TrainingTrialService")])
    async with running(application, settings_for("training", tmp_path)) as client:
        channels = Channels(settings_for("tuning", tmp_path, peers={"training": f"127.0.0.1:{client.port}"}))
        yield TrainingTrials(channels)
        await channels.close()


PLAN = Plan(Space(()), (), "Random", {}, (Objective("test_loss", False), Objective("test_accuracy", True)))
CURVES = {"test_loss": [0.5, 0.25], "test_accuracy": [0.75, 0.875], "grad_norm": [4.0]}


def metrics_of(number: int, curves: dict[str, list[float]] | None = None, **more: Any) -> trials_pb2.TrialMetrics:
    shown = [
        trials_pb2.TrialCurve(series=series, steps=range(1, len(values) + 1), values=values)
        for series, values in (CURVES if curves is None else curves).items()
    ]
    return trials_pb2.TrialMetrics(**{"trial_id": f"t{number}", "is_settled": True, "curves": shown, **more})


async def results_of(
    trainings: TrainingTrials, played: PlayedTrainings, *answers: trials_pb2.TrialMetrics, have_ended: bool = True
) -> dict[int, Results]:
    """What the client makes of the answers, by number."""
    trials = [Trial("s", number, f"t{number}", {}) for number in range(len(answers))]
    played.answers = {answer.trial_id: answer for answer in answers}
    found = await trainings.results(PLAN, trials, have_ended=have_ended)
    return {trial.number: found[trial.uid] for trial in trials if trial.uid in found}


async def test_objectives_are_the_newest_values_of_their_series(
    trainings: TrainingTrials, played: PlayedTrainings
) -> None:
    found = await results_of(trainings, played, metrics_of(0), metrics_of(1, {"test_loss": [0.5], "other": [1.0]}))
    assert (found[0].values, found[0].curve) == ((0.25, 0.875), [(1.0, 0.5), (2.0, 0.25)])
    assert (found[1].values, found[1].complaint) == (
        (),
        "the training reported no test_accuracy; what it reported: other, test_loss",
    )
    # All that had no room in the first answer was asked for.
    assert [list(request.trial_ids) for request in played.asked] == [["t0", "t1"], ["t1"]]


async def test_a_trial_counts_when_all_that_it_wrote_is_known(
    trainings: TrainingTrials, played: PlayedTrainings
) -> None:
    answers = metrics_of(0), metrics_of(1, is_settled=False)
    assert set(await results_of(trainings, played, *answers)) == {0}
    assert set(await results_of(trainings, played, *answers, have_ended=False)) == {0, 1}


@pytest.mark.parametrize("metric", ["test_loss", "test_accuracy"])
async def test_an_objective_that_is_not_finite_is_a_failure(
    trainings: TrainingTrials, played: PlayedTrainings, metric: str
) -> None:
    found = await results_of(trainings, played, metrics_of(0, not_finite_series=["grad_norm", metric]))
    # What is on its curve is of before.
    assert (found[0].values, found[0].complaint) == ((), f"the newest {metric} is not finite")


async def test_other_series_may_be_what_they_are(trainings: TrainingTrials, played: PlayedTrainings) -> None:
    found = await results_of(trainings, played, metrics_of(0, not_finite_series=["grad_norm"]))
    assert found[0].values == (0.25, 0.875)


async def test_results_that_are_too_large_are_told(trainings: TrainingTrials, played: PlayedTrainings) -> None:
    found = await results_of(trainings, played, metrics_of(0, {}, results_error="val_dict_list.json is larger than 8"))
    assert found[0].complaint == "val_dict_list.json is larger than 8"


async def test_a_few_trials_are_asked_for_at_a_time_and_what_is_known_counts(
    trainings: TrainingTrials, played: PlayedTrainings
) -> None:
    answers = [metrics_of(number) for number in range(25)]
    played.limit = 12
    found = await results_of(trainings, played, *answers)
    assert sorted(found) == list(range(12))
    assert {len(request.trial_ids) for request in played.asked} == set(range(1, 11))
    assert [one.trial_ids[0] for one in played.asked] == [f"t{number}" for number in range(12)]
    # Nothing at all is a reason to say so.
    with pytest.raises(ServiceError) as caught:
        await results_of(trainings, played, *answers)
    assert caught.value.code is Code.INTERNAL


async def test_what_was_found_in_some_time_is_saved_before_more_is_read(
    trainings: TrainingTrials, played: PlayedTrainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_trials, "READ_SECONDS", 0.0)
    answers = metrics_of(0, is_settled=False), metrics_of(1), metrics_of(2)
    # The first is not complete and holds nobody up.
    assert set(await results_of(trainings, played, *answers)) == {1}
    assert set(await results_of(trainings, played, *answers, have_ended=False)) == {0, 1, 2}


async def test_of_what_runs_only_the_first_objective_is_read(
    trainings: TrainingTrials, played: PlayedTrainings
) -> None:
    written = json.dumps([{"step": 3, "test_loss": 0.125, "test_accuracy": 0.5}])
    answers = metrics_of(0), metrics_of(1, {}, results=written)
    found = await results_of(trainings, played, *answers, have_ended=False)
    assert (found[0].curve, found[1].curve) == ([(1.0, 0.5), (2.0, 0.25)], [(3.0, 0.125)])
    asked = [(list(one.trial_ids), list(one.series), one.only_these_series, one.with_results) for one in played.asked]
    assert asked == [
        (["t0", "t1"], ["test_loss"], True, False),
        (["t1"], ["test_loss"], True, False),
        # Which reported nothing, and may have written something.
        (["t1"], [], True, True),
    ]


async def test_files_are_read_beside_the_loop(
    trainings: TrainingTrials, played: PlayedTrainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def noted(text: str, objectives: Any) -> Results:
        threads.append(threading.current_thread())
        return Results((0.5, 0.5))

    monkeypatch.setattr(training_trials, "read_results", noted)
    found = await results_of(trainings, played, metrics_of(0, {}, results="[]"))
    assert (found[0].values, len(threads)) == ((0.5, 0.5), 1)
    assert threads[0] is not threading.main_thread()
