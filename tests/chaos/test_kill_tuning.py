"""Searches and tunings while what runs them is killed: the trials are those of a calm one, and so is the best."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from dlmesh_platform.client import ENDED, Client
from dlmesh_platform.launch import RunningPlatform, launch
from dlmesh_platform.main_job import TEMPLATE, MainJob, write_digits
from testkit.platform import ranks_of
from testkit.postgres import PostgresServer

pytestmark = [pytest.mark.platform, pytest.mark.slow]

GRID = Path(__file__).parents[2] / "services" / "tuning" / "tests" / "plugins" / "grid" / "optimizer.py"
# Long enough to be killed in the middle, short enough for a test.
PROGRAM = """
import json, os, time
config = json.load(open("config.json"))
time.sleep(0.4)
with open(os.path.join(os.environ["RESULT_DIR"], "val_dict_list.json"), "w") as file:
    json.dump([{"step": 1, "loss": (config["rate"] - 0.3) ** 2 + 0.1 / config.get("epochs", 1)}], file)
"""
# The same as a training.
MODEL_PROGRAM = """
import json, sys, time
config = json.load(open("config.json"))
time.sleep(0.4)
print("Total iterations: 1", flush=True)
print(f"Timestamp {int(time.time() * 1000)}, Iteration 1", flush=True)
print(f"Iteration 1: tag test_loss, simple_value {(config['rate'] - 0.3) ** 2}", flush=True)
with open(sys.argv[sys.argv.index("--train_dir") + 1] + "/model_epoch_final.pth", "w") as file:
    file.write("weights")
"""
RATE = {"name": "rate", "type": "Range", "dataType": "double", "minDbVal": 0.0, "maxDbVal": 1.0}


@dataclass(frozen=True)
class Case:
    """What is searched how. `victims` are killed in an order that `seed` decides: each of them once at least, a trial
    twice at most, as the third time would be its failure."""

    algorithm: str
    trials: int
    seed: int
    parameters: Mapping[str, str] = field(default_factory=dict)
    parallel: int = 1
    victims: tuple[str, ...] = ("tuning", "trial", "scheduling", "trial", "tuning")

    def request(self, name: str, **parts: Any) -> dict[str, Any]:
        return {
            "hpoName": name,
            "algoDef": {
                "algorithm": self.algorithm,
                "maxJobNum": self.trials,
                "maxParalleJobNum": self.parallel,
                "objective": "minimize",
                "algoParams": [{"name": name, "value": value} for name, value in self.parameters.items()],
                **parts.pop("algoDef"),
            },
            **parts,
        }


SEARCHES = {
    "one after the other": Case("TPE", 12, 11, {"RandomSeed": "7", "WarmUp": "4"}),
    "by resource": Case("Hyperband", 13, 12, {"RandomSeed": "7", "ResourceName": "epochs", "ResourceValue": "9"}),
    # A grid is the same in whatever order two that run at once end. No two of its points are equally good: the best of
    # such two is the one that ended first.
    "installed, two at a time": Case("grid", 14, 13, {"points": "14"}, parallel=2),
}
TUNING = Case(
    "TPE",
    8,
    14,
    {"RandomSeed": "7", "WarmUp": "4"},
    victims=("tuning", "trial", "training", "scheduling", "trial", "tuning"),
)


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    with launch(tmp_path_factory.mktemp("sqlite") / "home", {"DLMESH_SLOTS": "2"}) as platform:
        yield platform


@pytest.fixture(scope="module")
def on_postgresql(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer
) -> Iterator[RunningPlatform]:
    home = tmp_path_factory.mktemp("postgresql") / "home"
    write_digits(home / "data" / "digits", home / "held-out")
    database = {"DLMESH_DATABASE_URL": postgres_server.create_database()}
    with launch(home, {"DLMESH_SLOTS": "2", **database}) as platform:
        yield platform


def patient(platform: RunningPlatform) -> Client:
    return Client.of_home(platform.home, platform.url, patience_seconds=120.0)


def trials_of(experiments: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What has to be the same: numbers, states, parameters and values."""
    return [
        (one["id"], one["state"], {each["name"]: each["fixedVal"] for each in one["hyperParams"]}, one["metricVal"])
        for one in experiments
    ]


def process_of(platform: RunningPlatform, victim: str, experiments: list[dict[str, Any]]) -> psutil.Process | None:
    """A service, or a rank of a trial that runs; None when there is none at the moment."""
    # One may end, its keeper may just be starting, and so may the service.
    with suppress(psutil.Error, OSError, IndexError, ValueError, KeyError):
        if victim != "trial":
            return psutil.Process(platform.pids()[victim])
        running = [one for one in experiments if one["state"] == "RUNNING"]
        ranks = [rank for one in running for rank in ranks_of(platform, {"appid": one["appId"]})]
        return ranks[0] if ranks else None
    return None


def killed_while_it_runs(
    platform: RunningPlatform, case: Case, state: Callable[[], str], experiments: Callable[[], list[dict[str, Any]]]
) -> list[str]:
    """Who was killed, one after the other, until all were or it had ended."""
    chances = random.Random(case.seed)
    # Who has to be killed comes first, so that a fast machine has no time to end before.
    first = list(dict.fromkeys(case.victims))
    others = list(case.victims)
    for victim in first:
        others.remove(victim)
    chances.shuffle(first)
    chances.shuffle(others)
    killed: list[str] = []
    for victim in first + others:
        time.sleep(chances.uniform(0.05, 0.5))
        process = None
        while process is None and state() not in ENDED:
            process = process_of(platform, victim, experiments())
            time.sleep(0.02)
        if process is None:
            break
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
            killed.append(victim)
    return killed


@pytest.mark.parametrize(
    ("name", "database"),
    [
        ("one after the other", "sqlite"),
        ("by resource", "sqlite"),
        ("installed, two at a time", "postgresql"),
    ],
)
def test_kills_change_neither_the_trials_nor_the_best(request: pytest.FixtureRequest, name: str, database: str) -> None:
    platform: RunningPlatform = request.getfixturevalue(f"on_{database}")
    client, case = patient(platform), SEARCHES[name]
    if case.algorithm == "grid":
        folder = platform.home / "data" / "grid"
        folder.mkdir()
        (folder / "optimizer.py").write_text(GRID.read_text())
        data = {"data": (None, json.dumps({"name": "grid", "path": "grid"}))}
        client.request("POST", "/hypersearch/algorithm/install", files=data)

    def started(name: str) -> str:
        data = case.request(
            name,
            algoDef={"objectiveMetric": "loss"},
            hyperParams=[RATE],
            modelSpec={"sigName": "local", "args": "--exec-start PyTorch --model-main main.py"},
        )
        client.request("POST", "/hypersearch", files={"file": ("main.py", PROGRAM), "data": (None, json.dumps(data))})
        return f"/hypersearch/{name}"

    calm_path = started("calm")
    client.until(lambda: client.get(calm_path)["state"] in ENDED, seconds=600)
    calm = client.get(calm_path)
    assert (calm["state"], calm["complete"]) == ("FINISHED", case.trials), calm["statusMessage"]
    path = started("killed")
    killed = killed_while_it_runs(
        platform, case, lambda: str(client.get(path)["state"]), lambda: list(client.get(path)["experiments"])
    )
    client.until(lambda: client.get(path)["state"] in ENDED, seconds=600)
    detail = client.get(path)
    assert set(killed) == set(case.victims), killed
    assert (detail["state"], detail["progress"]) == ("FINISHED", f"{case.trials}/{case.trials}"), detail[
        "statusMessage"
    ]
    assert trials_of(detail["experiments"]) == trials_of(calm["experiments"])
    assert trials_of([detail["best"]]) == trials_of([calm["best"]])
    client.delete("/hypersearch")
    client.close()


def test_kills_change_no_tuning(on_postgresql: RunningPlatform) -> None:
    platform, client = on_postgresql, patient(on_postgresql)
    job = MainJob(client, "digits", prefix="killed")
    job.create_dataset()
    job.await_dataset()
    client.post(
        "/models",
        {
            "name": "killed",
            "templatename": TEMPLATE,
            "dataset": "killed",
            "sig": "local",
            "accelerator": "Native",
            "batchsize": 64,
            "hyperparameter": {"solvertype": "Adam", "learningrate": 0.001, "lrpolicy": "fixed", "epoch": 1},
            "tfmainContent": MODEL_PROGRAM,
        },
    )

    def started(name: str) -> str:
        data = TUNING.request(
            name,
            algoDef={"objectiveMetric": "test_loss"},
            hyperParams=[{**RATE, "userDefined": True}],
            resDef={"framework": "PyTorch", "workerNum": 1},
        )
        client.post("/models/killed/hypersearch", data)
        return f"/models/killed/hypersearch/{name}"

    calm_path = started("calm")
    client.until(lambda: client.get(calm_path)["state"] in ENDED, seconds=600)
    calm = client.get(calm_path)
    assert (calm["state"], calm["searchGrid"]["complete"]) == ("FINISHED", TUNING.trials), calm["statusMessage"]
    path = started("killed")
    killed = killed_while_it_runs(
        platform,
        TUNING,
        lambda: str(client.get(path)["state"]),
        lambda: list(client.get(path)["searchGrid"]["experiments"]),
    )
    client.until(lambda: client.get(path)["state"] in ENDED, seconds=600)
    detail = client.get(path)
    grid = detail["searchGrid"]
    assert set(killed) == set(TUNING.victims), killed
    assert (detail["state"], grid["progress"]) == ("FINISHED", f"{TUNING.trials}/{TUNING.trials}"), detail[
        "statusMessage"
    ]
    assert trials_of(grid["experiments"]) == trials_of(calm["searchGrid"]["experiments"])
    assert trials_of([grid["best"]]) == trials_of([calm["searchGrid"]["best"]])
    # No more trainings than trials, whatever was killed in between.
    assert client.get("/models/killed/trainings") == []
    client.close()
