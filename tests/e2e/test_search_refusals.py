"""Searches that can never run, through the gateway: each is refused with the field, its value and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dlmesh_platform.client import ApiError, Client
from dlmesh_platform.launch import RunningPlatform
from search_room import ARGUMENTS, PROGRAM, RATE, refusal, search, start

pytestmark = [pytest.mark.platform, pytest.mark.slow]

INT = {"name": "layers", "type": "Range", "dataType": "int", "minIntVal": 1, "maxIntVal": 4}
STR = {"name": "solver", "type": "Discrete", "dataType": "str", "discreateStrVal": ["sgd"]}
FIXED = {"name": "rate", "dataType": "double", "fixedVal": 0.5}
GRID = {"algorithm": "ExperimentGridSearch", "objectiveMetric": "loss", "objective": "minimize"}
HYPERBAND = {"algorithm": "Hyperband", "objectiveMetric": "loss", "objective": "minimize"}


def parameters(*changed: Mapping[str, Any]) -> dict[str, Any]:
    return {"hyperParams": list(changed)}


def settings(**changed: Any) -> dict[str, Any]:
    return {"algoDef": {"algorithm": "Random", "objectiveMetric": "loss", "objective": "minimize", **changed}}


def resource(**values: str) -> dict[str, Any]:
    return {"algoDef": {**HYPERBAND, "algoParams": [{"name": name, "value": value} for name, value in values.items()]}}


CASES: dict[str, tuple[Mapping[str, Any], str, str]] = {
    "both": ({"experiments": [{"id": 1, "hyperParams": [FIXED]}]}, "experiments", "one of hyperParams and experiments"),
    "neither": (parameters(), "hyperParams", "at least one parameter"),
    "no experiments": ({"hyperParams": [], "algoDef": GRID}, "experiments", "at least one experiment"),
    "parameters for given experiments": ({"algoDef": GRID}, "experiments", "at least one experiment"),
    "experiments for a search": (
        {"hyperParams": [], "experiments": [{"id": 1, "hyperParams": [FIXED]}]},
        "hyperParams",
        "experiments are for ExperimentGridSearch",
    ),
    "an experiment without parameters": (
        {"hyperParams": [], "experiments": [{"id": 1}], "algoDef": GRID},
        "experiments[0].hyperParams",
        "at least one parameter",
    ),
    "an experiment's id twice": (
        {"hyperParams": [], "experiments": [{"id": 1, "hyperParams": [FIXED]}] * 2, "algoDef": GRID},
        "experiments[1].id",
        "no other experiment",
    ),
    "an experiment of a wrong type": (
        {"hyperParams": [], "experiments": [{"id": 1, "hyperParams": [{**FIXED, "fixedVal": "a"}]}], "algoDef": GRID},
        "experiments[0].hyperParams[0].fixedVal",
        "a number",
    ),
    "an unknown algorithm": (settings(algorithm="Best"), "algoDef.algorithm", "Hyperband"),
    "no algorithm": (settings(algorithm=None), "algoDef.algorithm", "it has to be given"),
    "an unknown setting": (
        settings(algoParams=[{"name": "Speed", "value": "1"}]),
        "algoParams",
        "RandomSeed",
    ),
    "a setting of a wrong type": (
        settings(algorithm="TPE", algoParams=[{"name": "WarmUp", "value": "many"}]),
        "algoParams.WarmUp",
        "a whole number",
    ),
    "no metric": (settings(objectiveMetric=None), "algoDef.objectiveMetric", "it has to be given"),
    "no objective": (settings(objective=None), "algoDef.objective", "it has to be given"),
    "a wrong objective": (settings(objective="best"), "algoDef.objective", "maximize"),
    "Hyperband without its resource": ({"algoDef": HYPERBAND}, "algoParams.ResourceName", "it has to be given"),
    "Hyperband without how much": (resource(ResourceName="epochs"), "algoParams.ResourceValue", "it has to be given"),
    "Hyperband with half an epoch": (
        resource(ResourceName="epochs", ResourceValue="4.5"),
        "algoParams.ResourceValue",
        "a whole number",
    ),
    "Hyperband with more at least than at most": (
        resource(ResourceName="epochs", ResourceValue="4", MinResource="5"),
        "algoParams.ResourceValue",
        "at least",
    ),
    "an empty range": (
        parameters({"name": "rate", "type": "Range", "dataType": "double"}),
        "hyperParams[0].minDbVal",
        "it has to be given",
    ),
    "an inverted range": (parameters({**INT, "maxIntVal": 0}), "hyperParams[0].maxIntVal", "at least 1"),
    "a step beyond the range": (parameters({**INT, "step": "4"}), "hyperParams[0].step", "at most 3"),
    "half a step": (parameters({**INT, "step": "0.5"}), "hyperParams[0].step", "a whole number"),
    "a step of nothing": (parameters({**RATE, "step": "0"}), "hyperParams[0].step", "a number above 0"),
    "a base of 1": (parameters({**RATE, "power": "1"}), "hyperParams[0].power", "other than 1"),
    "powers beyond all numbers": (
        parameters({**RATE, "maxDbVal": 400, "step": None, "power": "10"}),
        "hyperParams[0].power",
        "can hold",
    ),
    "an end of a wrong type": (parameters({**INT, "maxIntVal": 2.5}), "hyperParams[0].maxIntVal", "a whole number"),
    "an end that is no number": (parameters({**RATE, "maxDbVal": "wide"}), "hyperParams[0].maxDbVal", "a number"),
    "an end without end": (parameters({**RATE, "maxDbVal": "inf"}), "hyperParams[0].maxDbVal", "a finite number"),
    "a range of words": (parameters({**STR, "type": "Range"}), "hyperParams[0].type", "Discrete or Fix"),
    "no values": (parameters({**STR, "discreateStrVal": []}), "hyperParams[0].discreateStrVal", "1 to"),
    "a value of a wrong type": (
        parameters({"name": "n", "type": "Discrete", "dataType": "int", "discreteIntVal": [1, "two"]}),
        "hyperParams[0].discreteIntVal[1]",
        "a number",
    ),
    "a fixed one without value": (
        parameters(RATE, {"name": "n", "type": "Fix", "dataType": "int"}),
        "hyperParams[1].fixedVal",
        "it has to be given",
    ),
    "an unknown kind": (parameters({**RATE, "type": "Normal"}), "hyperParams[0].type", "Discrete"),
    "an unknown type": (parameters({**RATE, "dataType": "complex"}), "hyperParams[0].dataType", "double"),
    "a name twice": (parameters(RATE, {**INT, "name": "rate"}), "hyperParams[1].name", "no other parameter"),
    "no parameters but words": ({"hyperParams": ["rate"]}, "hyperParams[0]", "an object"),
    "a metric that nothing can hold": (settings(objectiveMetric="\ud800"), "data", "whole characters"),
    "trials without number": (settings(maxJobNum="all"), "algoDef.maxJobNum", "a number"),
    "too many at a time": (settings(maxParalleJobNum=1001), "algoDef.maxParalleJobNum", "1 to 1000"),
    "minutes without end": (settings(maxRunTime="inf"), "algoDef.maxRunTime", "a finite number"),
    "a priority beyond all": ({"priority": 10**9}, "priority", ""),
    "a group that is not there": (
        {"modelSpec": {"sigName": "nowhere", "args": ARGUMENTS}},
        "modelSpec.sigName",
        "local",
    ),
}


def studies_on_disk(platform: RunningPlatform) -> set[Path]:
    """The folder comes with the first one that has a file."""
    folder = platform.home / "tuning"
    return set(folder.iterdir()) if folder.exists() else set()


@pytest.mark.parametrize("case", CASES)
def test_what_will_not_do_is_named(admin: Client, platform: RunningPlatform, case: str) -> None:
    change, field, says = CASES[case]
    before = studies_on_disk(platform)
    with pytest.raises(ApiError) as caught:
        start(admin, {**search("wrong"), **change})
    assert caught.value.status == 400, caught.value
    assert caught.value.message.startswith(f"{field}: "), caught.value.message
    assert says in caught.value.message
    assert refusal(admin, "GET", "/hypersearch/wrong")[0] == 400
    assert studies_on_disk(platform) <= before


@pytest.mark.parametrize(
    "data",
    ["", "{", "[]", "null", "42", "{'hpoName': }", "__import__('os')", '{"hpoName": "a"' + "[" * 100_000, "\0", "{}"],
)
def test_data_that_is_no_request(admin: Client, data: str) -> None:
    parts = {"data": (None, data), "file": ("main.py", PROGRAM)}
    status, message = refusal(admin, "POST", "/hypersearch", files=parts)
    assert status == 400
    assert message.startswith("algoDef" if data == "{}" else "data: ")
    assert len(message) < 1000


def test_more_data_than_a_request_has(admin: Client) -> None:
    data = json.dumps(search("large") | {"comment": "x" * 5_000_000})
    parts = {"data": (None, data), "file": ("main.py", PROGRAM)}
    assert refusal(admin, "POST", "/hypersearch", files=parts) == (400, "data: more than the allowed 4194304 bytes")
