"""Tunings as the tests of them start, await and read them, and the models that they tune."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from dlmesh_platform.client import ApiError, Client
from dlmesh_platform.main_job import TEMPLATE
from search_room import ENDED

RATE = {"name": "learningrate", "type": "Range", "dataType": "double", "minDbVal": -4, "maxDbVal": -2, "power": "10"}
HYPERPARAMETER = {"solvertype": "Adam", "learningrate": 0.001, "lrpolicy": "fixed", "epoch": 1}
RESOURCES = {"framework": "PyTorch", "workerNum": 1, "batchsize": 64}


@contextmanager
def model_named(admin: Client, name: str, **more: Any) -> Iterator[str]:
    """The path of a model over the main job's dataset; it and its tunings are gone afterwards."""
    path = f"/models/{name}"
    fields = {"templatename": TEMPLATE, "dataset": "shared", "sig": "local", "accelerator": "Native", "batchsize": 32}
    admin.post("/models", {"name": name, "hyperparameter": HYPERPARAMETER, **fields, **more})
    try:
        yield path
    finally:
        for one in admin.get(f"{path}/hypersearch"):
            if one["state"] not in ENDED:
                admin.put(f"{path}/hypersearch/{one['input']['hpoName']}/force")
            admin.delete(f"{path}/hypersearch/{one['input']['hpoName']}")
        admin.until(lambda: _deleted(admin, path), seconds=240)


def _deleted(admin: Client, path: str) -> bool:
    try:
        admin.delete(path)
    except ApiError as error:
        if error.status != 409:
            raise
        # Trainings of the tuning are being ended.
        return False
    return True


def tuning(name: str, *parameters: Mapping[str, Any], **algorithm: Any) -> dict[str, Any]:
    parts = {part: algorithm.pop(part) for part in ("experiments", "resDef") if part in algorithm}
    settings = {"algorithm": "Random", "objectiveMetric": "test_accuracy", "objective": "maximize", "maxJobNum": 2}
    searched = {} if "experiments" in parts else {"hyperParams": list(parameters or [RATE])}
    return {"hpoName": name, "algoDef": {**settings, **algorithm}, "resDef": RESOURCES, **searched, **parts}


def ended(admin: Client, path: str) -> dict[str, Any]:
    admin.until(lambda: admin.get(path)["state"] in ENDED, seconds=400)
    found: dict[str, Any] = admin.get(path)
    return found


def refused(call: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        call()
    return caught.value.status, caught.value.message
