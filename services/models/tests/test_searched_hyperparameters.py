"""Hyperparameters of trials: what a model's own become under values of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.models.v1 import hyperparameters_pb2, hyperparameters_pb2_grpc, models_pb2, models_pb2_grpc
from models_service.domain.searched_values import check_value, known_hyperparameters, read_values
from models_service.wiring import build
from servicekit.errors import Code, ServiceError
from testkit.services import ALICE, BOB, acting_as, running, settings_for

from .conftest import PlayedPeers

Value = hyperparameters_pb2.HyperparameterValue
Values = hyperparameters_pb2.HyperparameterValues


def test_what_a_framework_has_is_listed_with_its_types() -> None:
    pytorch, caffe = known_hyperparameters("PyTorch"), known_hyperparameters("Caffe")
    assert {name: pytorch[name].data_type for name in ("learningrate", "epoch", "nesterov", "stepvalues", "mode")} == {
        "learningrate": "double",
        "epoch": "int",
        "nesterov": "bool",
        "stepvalues": "str",
        "mode": "str",
    }
    assert "Adamax" in pytorch["solvertype"].words
    assert pytorch["momentum"].allowed == "a number of at least 0"
    assert caffe["momentum"].allowed == "a number of at least 0 and less than 1"
    assert ("rho" in pytorch, "rho" in caffe, "epoch" in caffe) == (True, False, False)


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("learningrate", "0.1", 0.1),
        ("epoch", "3", 3),
        ("epoch", 3.0, 3.0),
        ("nesterov", "True", True),
        ("nesterov", 0, False),
        ("nesterov", "maybe", "maybe"),
        ("stepvalues", 10, 10),
        ("solvertype", "Adam", "Adam"),
    ],
)
def test_values_of_a_search_are_read_as_what_the_hyperparameter_holds(name: str, given: Any, read: Any) -> None:
    found = read_values({name: given}, "PyTorch", "hyperParams")[name]
    assert (found, type(found)) == (read, type(read))


@pytest.mark.parametrize(
    ("name", "value", "framework"),
    [
        ("learningrate", 0.0, "PyTorch"),
        ("learningrate", "much", "PyTorch"),
        ("learningrate", float("inf"), "PyTorch"),
        ("epoch", 2.5, "PyTorch"),
        ("epoch", 2**31, "PyTorch"),
        ("epoch", "9" * 30, "PyTorch"),
        ("epoch", "9" * 6000, "PyTorch"),
        ("nesterov", 2, "PyTorch"),
        ("solvertype", "Ftrl", "PyTorch"),
        ("momentum", 1.0, "Caffe"),
        ("stepvalues", "3,2", "Caffe"),
    ],
)
def test_a_value_that_cannot_be_is_named(name: str, value: Any, framework: str) -> None:
    with pytest.raises(ServiceError) as caught:
        check_value(name, value, framework, "hyperParams")
    assert (caught.value.code, caught.value.metadata["field"]) == (Code.INVALID_ARGUMENT, f"hyperParams.{name}")


def test_a_name_of_another_framework_is_refused_and_the_known_listed() -> None:
    with pytest.raises(ServiceError, match=r"hyperParams: 'rho' is not valid.*learningrate, .*gamma"):
        read_values({"rho": 0.5}, "Caffe", "hyperParams")


async def test_what_would_hold_for_a_trial(tmp_path: Path, database_url: str) -> None:
    peers = PlayedPeers()
    settings = settings_for("models", tmp_path, database_url=database_url)
    async with running(build(settings, datasets=peers, groups=peers, activity=peers), settings) as client:
        models: Any = client.stub(models_pb2_grpc.ModelServiceStub)
        settle: Any = client.stub(hyperparameters_pb2_grpc.HyperparameterServiceStub).SettleHyperparameters
        given = models_pb2.Hyperparameters(solver="SGD", learning_rate=0.5, momentum=0.9, epochs=4)
        with acting_as(ALICE):
            await models.CreateModel(
                models_pb2.CreateModelRequest(
                    name="m", template_name="pytorch-image-classification", hyperparameters=given
                )
            )

        def request(name: str = "m", **fields: Any) -> hyperparameters_pb2.SettleHyperparametersRequest:
            return hyperparameters_pb2.SettleHyperparametersRequest(model_name=name, field="hyperParams", **fields)

        with acting_as(ALICE):
            answer = await settle(
                request(
                    given={"learningrate": Value(number=0.1 + 0.2), "nesterov": Value(text="true")},
                    candidates={"solvertype": Values(values=[Value(text="SGD"), Value(text="Adam (Cf, TF and PT)")])},
                )
            )
            held = answer.hyperparameters
            assert (held["learningrate"].number, held["nesterov"].flag) == (0.1 + 0.2, True)
            assert (held["momentum"].number, held["epoch"].whole, held["solvertype"].text) == (0.9, 4, "SGD")
            assert list(answer.known) == list(known_hyperparameters("PyTorch"))
            detail = await models.GetModel(models_pb2.GetModelRequest(model_name="m"))
            assert detail.hyperparameters.learning_rate == 0.5
            for wrong, message in (
                ({"given": {"momentum": Value(whole=-1)}}, "hyperParams.momentum: -1"),
                (
                    {"given": {"momentum": Value(whole=0), "nesterov": Value(flag=True)}},
                    "hyperParams.momentum.*nesterov",
                ),
                ({"given": {"momentum": Value()}}, "hyperParams.momentum: ''"),
                ({"candidates": {"epoch": Values(values=[Value(whole=1), Value(whole=0)])}}, "hyperParams.epoch: 0"),
                ({"given": {"lrpolicy": Value(text="step")}}, "hyperParams.stepsize.*needs it"),
                (
                    {"given": {"lrpolicy": Value(text="reducelronplateau")}, "accelerator": "Elastic"},
                    "hyperParams.lrpolicy.*Elastic",
                ),
            ):
                with pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
                    await settle(request(**wrong))
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await settle(request("none"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        with acting_as(BOB), pytest.raises(grpc.aio.AioRpcError) as caught:
            await settle(request())
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
