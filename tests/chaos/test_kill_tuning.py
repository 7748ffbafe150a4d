"""Searches while what runs them is killed: the trials are those of a calm search, and so is the best."""

from __future__ import annotations

import json
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform, launch
from testkit.platform import ranks_of

pytestmark = [pytest.mark.platform, pytest.mark.slow]

TRIALS = 12
# Long enough to be killed in the middle, short enough for a test.
PROGRAM = """
import json, os, time
config = json.load(open("config.json"))
time.sleep(0.4)
with open(os.path.join(os.environ["RESULT_DIR"], "val_dict_list.json"), "w") as file:
    json.dump([{"step": 1, "loss": (config["rate"] - 0.3) ** 2}], file)
"""
VICTIMS = ("tuning", "scheduling", "trial")


def search(name: str) -> dict[str, Any]:
    return {
        "hpoName": name,
        "modelSpec": {"sigName": "local", "args": "--exec-start PyTorch --model-main main.py"},
        "algoDef": {
            "algorithm": "TPE",
            "maxJobNum": TRIALS,
            "objectiveMetric": "loss",
            "objective": "minimize",
            "algoParams": [{"name": "RandomSeed", "value": "7"}, {"name": "WarmUp", "value": "4"}],
        },
        "hyperParams": [{"name": "rate", "type": "Range", "dataType": "double", "minDbVal": 0.0, "maxDbVal": 1.0}],
    }


def start(client: Client, name: str) -> str:
    parts = {"file": ("main.py", PROGRAM), "data": (None, json.dumps(search(name)))}
    client.request("POST", "/hypersearch", files=parts)
    return f"/hypersearch/{name}"


def has_ended(client: Client, path: str) -> bool:
    return client.get(path)["state"] not in ("SUBMITTED", "RUNNING")


def values(detail: dict[str, Any]) -> list[tuple[int, str, str]]:
    return [(one["id"], one["state"], one["hyperParams"][0]["fixedVal"]) for one in detail["experiments"]]


def running_ranks(client: Client, platform: RunningPlatform, path: str) -> list[psutil.Process]:
    """Processes of the trial that runs."""
    running = [one for one in client.get(path)["experiments"] if one["state"] == "RUNNING"]
    # It may end, or its keeper may just be starting.
    with suppress(psutil.Error, OSError, IndexError, ValueError):
        return [rank for one in running for rank in ranks_of(platform, {"appid": one["appId"]})]
    return []


def kill_one(client: Client, platform: RunningPlatform, path: str, victim: str) -> str:
    """Somebody dies, if there is such a one at the moment; who it was."""
    if victim == "trial":
        running = running_ranks(client, platform, path)
        if not running:
            return ""
        process = running[0]
    else:
        pid = platform.pids().get(victim)
        if not pid:
            return ""
        process = psutil.Process(pid)
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)
    return victim


def test_kills_change_neither_the_trials_nor_the_best(tmp_path: Path) -> None:
    chances = random.Random(11)
    with launch(tmp_path / "home", {"DLMESH_SLOTS": "2"}) as platform:
        client = Client.of_home(platform.home, platform.url, patience_seconds=120.0)
        calm_path = start(client, "calm")
        client.until(lambda: has_ended(client, calm_path), seconds=600)
        calm = client.get(calm_path)
        path = start(client, "killed")
        killed: list[str] = []
        while not has_ended(client, path) and len(killed) < 10:
            time.sleep(chances.uniform(0.1, 0.8))
            # No trial is killed three times, which would count as its failure: that is another promise.
            victims = VICTIMS if killed.count("trial") < 2 else VICTIMS[:2]
            killed += filter(None, [kill_one(client, platform, path, chances.choice(victims))])
        client.until(lambda: has_ended(client, path), seconds=600)
        detail = client.get(path)
        assert {"tuning", "trial"} <= set(killed), killed
        assert (detail["state"], detail["progress"]) == ("FINISHED", f"{TRIALS}/{TRIALS}"), detail["statusMessage"]
        assert values(detail) == values(calm)
        assert detail["best"]["id"] == calm["best"]["id"]
        assert detail["best"]["metricVal"] == calm["best"]["metricVal"]
