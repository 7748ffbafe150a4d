"""Trials of elastic models: which models those are, and what limits their trials."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import grpc
import pytest
from training_room import Room, refused
from training_service.domain.specs import TrainingSpec
from training_service.usecases.ports import FrameworkFacts
from trial_room import Value, check, start


def make(room: Room, **facts: Any) -> None:
    room.models.known["digits"] = replace(room.models.known["digits"], **facts)


ELASTIC_WORDS = ["PyTorchOnElastic", "pytorchonelastic", "edtPyTorch"]


@pytest.mark.parametrize("framework", ELASTIC_WORDS)
async def test_a_trial_of_an_elastic_model_is_elastic(room: Room, framework: str) -> None:
    make(room, accelerator="Elastic")
    assert list((await check(room, framework=framework, workers=5, sync_mode="ASYNC")).warnings) == []
    job = room.jobs.requests[await start(room, framework=framework, workers=5, sync_mode="ASYNC")]
    told = TrainingSpec.read(job.command[3])
    assert (job.ranks, job.min_ranks, told.max_workers, told.sync_mode) == (2, 1, 2, "ASYNC")


@pytest.mark.parametrize("accelerator", ["Single", "Native"])
@pytest.mark.parametrize("framework", [*ELASTIC_WORDS, "edtTensorFlow"])
async def test_no_framework_makes_a_model_elastic(room: Room, framework: str, accelerator: str) -> None:
    make(room, accelerator=accelerator)
    for call in (check, start):
        code, message = await refused(call(room, framework=framework, max_iterations=9))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert re.match(f"resDef.framework: '{framework}' .*PyTorch, because .*'digits' is not Elastic", message), (
            message
        )
    assert room.jobs.requests == {}


async def test_iterations_that_limit_no_elastic_trial_are_told(room: Room) -> None:
    assert list((await check(room, max_iterations=9)).warnings) == []
    make(room, accelerator="Elastic")
    for framework in ("", "PyTorch", "PyTorchOnElastic"):
        (warning,) = (await check(room, framework=framework, max_iterations=9)).warnings
        assert re.match(r"resDef.maxiteration: 9 is not used, .*epoch", warning), warning
    assert list((await check(room, hyperparameters={"epoch": Value(whole=3)})).warnings) == []


@pytest.mark.parametrize(
    ("candidates", "given"),
    [
        # As the resource of an algorithm comes, and a parameter of every trial.
        ({}, {"maxiteration": Value(whole=27)}),
        ({"maxiteration": [Value(whole=27)]}, {}),
    ],
)
async def test_no_search_over_iterations_that_limit_nothing(
    room: Room, candidates: dict[str, list[Any]], given: dict[str, Any]
) -> None:
    await check(room, candidates, hyperparameters=given)
    make(room, accelerator="Elastic")
    code, message = await refused(check(room, candidates, hyperparameters=given))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert re.match(r"hyperParams.maxiteration: 27 .*epoch in its place", message), message


@pytest.mark.parametrize(("epoch", "counts"), [({}, True), ({"epoch": Value(whole=2)}, False)])
async def test_tensorflow_makes_epochs_of_iterations_where_none_are_given(
    room: Room, monkeypatch: pytest.MonkeyPatch, epoch: dict[str, Any], counts: bool
) -> None:
    async def frameworks() -> list[FrameworkFacts]:
        return [FrameworkFacts("TensorFlow", "TensorFlow")]

    monkeypatch.setattr(room.models, "frameworks", frameworks)
    make(room, accelerator="Elastic", framework="TensorFlow", hyperparameter={})
    iterations = {"maxiteration": Value(whole=27)}
    assert len((await check(room, max_iterations=9, hyperparameters=epoch)).warnings) == (not counts)
    if counts:
        assert list((await check(room, hyperparameters=iterations)).warnings) == []
    else:
        _, message = await refused(check(room, hyperparameters={**epoch, **iterations}))
        assert message.startswith("hyperParams.maxiteration: 27"), message
