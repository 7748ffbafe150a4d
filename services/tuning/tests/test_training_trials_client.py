"""What the training service answers of trials, as studies take it: the client against a played service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dlmesh.training.v1 import trials_pb2, trials_pb2_grpc
from servicekit.channels import Channels
from servicekit.server import Application
from testkit.services import running, settings_for
from tuning_service.clients.training_trials import TrainingTrials
from tuning_service.domain.plan import Objective, Plan
from tuning_service.domain.results import Results
from tuning_service.domain.space import Space
from tuning_service.domain.study import Trial


class PlayedTrainings(trials_pb2_grpc.TrainingTrialServiceServicer):
    """Answers one trial a call."""

    def __init__(self) -> None:
        self.answers: dict[str, trials_pb2.TrialMetrics] = {}
        self.asked: list[trials_pb2.ReadTrialMetricsRequest] = []

    async def ReadTrialMetrics(self, request: Any, context: Any) -> trials_pb2.ReadTrialMetricsResponse:
        self.asked.append(request)
        first, *unread = request.trial_ids
        found = [self.answers[first]] if first in self.answers else []
        return trials_pb2.ReadTrialMetricsResponse(trials=found, unread_trial_ids=unread)


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
    said = "grad_norm is not finite since iteration 2"
    answers = metrics_of(0, not_finite_series=["grad_norm"], status_message=said), metrics_of(1, status_message=said)
    found = await results_of(trainings, played, *answers)
    assert [found[number].values for number in (0, 1)] == [(0.25, 0.875)] * 2


async def test_results_that_are_too_large_are_told(trainings: TrainingTrials, played: PlayedTrainings) -> None:
    found = await results_of(trainings, played, metrics_of(0, {}, results_error="val_dict_list.json is larger than 8"))
    assert found[0].complaint == "val_dict_list.json is larger than 8"
