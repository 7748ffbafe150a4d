"""Tunings through the gateway: every field of resDef, every kind of algorithm, given experiments, programs of a model's
own. The program of these models trains nothing, so that a trial takes no time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform
from dlmesh_platform.main_job import MainJob
from search_room import PLUGINS, install, tar_of, values
from testkit.platform import attempts_of
from tuning_room import RATE, RESOURCES, ended, model_named, refused, tuning

pytestmark = [pytest.mark.platform, pytest.mark.slow]

# The best width is 6, the best activation is the second; what it found is printed.
PROGRAM = """
import argparse, json, os, time
parser = argparse.ArgumentParser()
parser.add_argument("--train_dir")
parser.add_argument("--weights", default="")
known, _ = parser.parse_known_args()
config = json.load(open("config.json"))
weights = ""
if os.path.isfile(known.weights):
    weights = open(known.weights).read()
elif os.path.isdir(known.weights):
    weights = "".join(open(os.path.join(known.weights, name)).read() for name in sorted(os.listdir(known.weights)))
found = {"ranks": int(os.environ["WORLD_SIZE"]), "weights": weights, "config": config}
print("found " + json.dumps(found), flush=True)
if os.environ["RANK"] == "0":
    loss = abs(config.get("width", 6) - 6) + (config.get("activation", "relu") != "relu") + config["learningrate"]
    print("Total iterations: 1", flush=True)
    print(f"Timestamp {int(time.time() * 1000)}, Iteration 1", flush=True)
    print(f"Iteration 1: tag test_loss, simple_value {loss}", flush=True)
    with open(os.path.join(known.train_dir, "model_epoch_final.pth"), "w") as file:
        file.write("weights")
"""
WIDTH = {"name": "width", "type": "range", "dataType": "INT", "minIntVal": 1, "maxIntVal": 9, "userDefined": True}
ACTIVATION = {
    "name": "activation",
    "type": "Discrete",
    "dataType": "str",
    "discreateStrVal": ["tanh", "relu"],
    "userDefined": True,
}
LOSS = {"objectiveMetric": "test_loss", "objective": "minimize"}


@pytest.fixture
def model(admin: Client, trained: MainJob) -> Iterator[str]:
    with model_named(admin, "quick", tfmainContent=PROGRAM) as path:
        yield path


def found_by(platform: RunningPlatform, trial: Mapping[str, Any]) -> dict[str, Any]:
    """What the first rank of a trial found where it ran."""
    output = (attempts_of(platform, {"appid": trial["appId"]})[-1] / "rank-0.out").read_text()
    line = next(line for line in output.splitlines() if line.startswith("found "))
    found: dict[str, Any] = json.loads(line.removeprefix("found "))
    return found


def iterations_of(platform: RunningPlatform, trial: Mapping[str, Any]) -> int:
    """How many iterations the program of a trial said it would make."""
    output = (attempts_of(platform, {"appid": trial["appId"]})[-1] / "rank-0.out").read_text()
    line = next(line for line in output.splitlines() if line.startswith("Total iterations: "))
    return int(line.removeprefix("Total iterations: "))


def loss_of(trial: Mapping[str, Any]) -> float:
    chosen = values(trial)
    return abs(int(chosen["width"]) - 6) + (chosen["activation"] != "relu") + float(chosen["learningrate"])


@pytest.mark.parametrize(
    ("algorithm", "parameters"),
    [
        ("TPE", {"WarmUp": "2", "RandomSeed": "1"}),
        ("Bayesian", {"InitPoints": "2", "RandomSeed": "1"}),
        ("evolution", {"RandomSeed": "1"}),
    ],
)
def test_algorithms(admin: Client, model: str, algorithm: str, parameters: Mapping[str, str]) -> None:
    if algorithm == "evolution":
        install(
            admin, {"name": algorithm}, tar_of({"optimizer.py": (PLUGINS / algorithm / "optimizer.py").read_text()})
        )
    given = [{"name": name, "value": value} for name, value in parameters.items()]
    request = tuning(
        "learns",
        WIDTH,
        ACTIVATION,
        RATE,
        algorithm=algorithm,
        algoParams=given,
        maxJobNum=5,
        maxParalleJobNum=2,
        **LOSS,
    )
    admin.post(f"{model}/hypersearch", request)
    detail = ended(admin, f"{model}/hypersearch/learns")
    trials = detail["searchGrid"]["experiments"]
    assert (detail["state"], len(trials)) == ("FINISHED", 5), detail["statusMessage"]
    for one in trials:
        assert 1 <= int(values(one)["width"]) <= 9
        assert values(one)["activation"] in ("tanh", "relu")
        assert 1e-4 <= float(values(one)["learningrate"]) <= 1e-2
        assert one["metricVal"] == pytest.approx(loss_of(one), abs=1e-6)
    assert detail["searchGrid"]["best"] == min(trials, key=lambda one: one["metricVal"])
    assert len({tuple(values(one).items()) for one in trials}) == 5
    if algorithm == "evolution":
        admin.delete(f"{model}/hypersearch/learns")
        admin.delete("/hypersearch/algorithm/evolution")


def test_experiments_as_given(admin: Client, model: str, platform: RunningPlatform) -> None:
    def fixed(name: str, data_type: str, value: str, *, user_defined: bool = False) -> dict[str, Any]:
        return {"name": name, "dataType": data_type, "fixedVal": value, "userDefined": user_defined}

    experiments = [
        {"id": 8, "fixedHyperParams": [fixed("width", "int", "4", user_defined=True)]},
        {"id": 3, "fixedHyperParams": [fixed("learningrate", "double", "0.01"), fixed("epoch", "int", "2")]},
    ]
    request = tuning("given", algorithm="ExperimentGridSearch", experiments=experiments, maxJobNum=-1, **LOSS)
    admin.post(f"{model}/hypersearch", request)
    detail = ended(admin, f"{model}/hypersearch/given")
    first, second = detail["searchGrid"]["experiments"]
    assert (first["id"], first["metricVal"]) == (8, pytest.approx(2.001))
    assert (second["id"], second["metricVal"]) == (3, pytest.approx(0.01))
    assert (detail["searchGrid"]["progress"], detail["searchGrid"]["best"]) == ("2/2", second)
    assert found_by(platform, first)["config"].items() >= {"width": 4, "learningrate": 0.001, "epoch": 1}.items()
    config = found_by(platform, second)["config"]
    assert config.items() >= {"learningrate": 0.01, "epoch": 2}.items()
    assert "width" not in config
    assert detail["input"]["experiments"][0]["id"] == 8


def test_workers_batches_and_weights(admin: Client, model: str, platform: RunningPlatform) -> None:
    folder = platform.home / "data" / "weights-of-tunings"
    folder.mkdir(exist_ok=True)
    (folder / "first.pth").write_text("of an earlier one")
    resources = {
        "framework": "PyTorch",
        "workerNum": 2,
        "distribute": True,
        "syncMode": "SYNC",
        "batchsize": 48,
        "maxiteration": "70",
        "initWeightPath": "weights-of-tunings/first.pth",
        "resourceInstanceId": "local",
    }
    admin.post(f"{model}/hypersearch", tuning("whole", RATE, maxJobNum=1, resDef=resources, **LOSS))
    detail = ended(admin, f"{model}/hypersearch/whole")
    assert detail["state"] == "FINISHED", detail["statusMessage"]
    assert detail["input"]["resDef"] == resources
    found = found_by(platform, detail["searchGrid"]["best"])
    assert (found["ranks"], found["weights"]) == (2, "of an earlier one")
    assert (found["config"]["batchsize"], found["config"]["maxiteration"]) == (48, 70)
    (attempt,) = attempts_of(platform, {"appid": detail["searchGrid"]["best"]["appId"]})
    assert sorted(file.name for file in attempt.glob("rank-*.out")) == ["rank-0.out", "rank-1.out"]


def test_what_is_not_used_is_said(admin: Client, model: str, platform: RunningPlatform) -> None:
    resources = {**RESOURCES, "workerNum": 2, "distribute": False, "gpuNum": 1}
    admin.post(f"{model}/hypersearch", tuning("alone", RATE, maxJobNum=1, resDef=resources, **LOSS))
    detail = ended(admin, f"{model}/hypersearch/alone")
    assert detail["state"] == "FINISHED", detail["statusMessage"]
    assert found_by(platform, detail["searchGrid"]["best"])["ranks"] == 1
    said = "\n".join(detail["warnings"])
    assert "resDef.workerNum: 2 is not used, as distribute is false" in said
    (group,) = (one for one in admin.get("/platform/rest/dlmesh/v1/instancegroups") if one["name"] == "local")
    assert ("resDef.gpuNum: local has no GPUs" in said) == (not group.get("gpusPerHost"))


def test_trials_of_elastic_models_share_out_epochs(admin: Client, trained: MainJob, platform: RunningPlatform) -> None:
    with model_named(admin, "elastic", accelerator="Elastic") as path:
        resources = {**RESOURCES, "framework": "PyTorchOnElastic", "maxiteration": "3"}
        bands = tuning("bands", RATE, algorithm="Hyperband", maxJobNum=4, resDef=resources, **LOSS)
        status, message = refused(lambda: admin.post(f"{path}/hypersearch", bands))
        assert (status, message.startswith("hyperParams.maxiteration: 3")) == (400, True), message
        epochs = {"ResourceName": "epoch", "ResourceValue": "3", "MinResource": "1"}
        bands["algoDef"]["algoParams"] = [{"name": name, "value": value} for name, value in epochs.items()]
        admin.post(f"{path}/hypersearch", bands)
        detail = ended(admin, f"{path}/hypersearch/bands")
        assert detail["state"] == "FINISHED", detail["statusMessage"]
        assert "resDef.maxiteration: 3 is not used" in "\n".join(detail["warnings"])
        trials = detail["searchGrid"]["experiments"]
        totals = [iterations_of(platform, trial) for trial in trials]
        assert totals == [totals[0]] * 3 + [3 * totals[0]]


def test_a_new_model_has_what_its_program_found(admin: Client, model: str) -> None:
    """Beside what the model's config.json held before."""
    admin.put(f"{model}/files", {"tmpfilePath": "config.json", "tmpfileContent": '{"augment": true, "width": 1}'})
    admin.post(f"{model}/hypersearch", tuning("copied", WIDTH, maxJobNum=3, **LOSS))
    detail = ended(admin, f"{model}/hypersearch/copied")
    assert detail["state"] == "FINISHED", detail["statusMessage"]
    admin.put(f"{model}/hypersearch/copied/create/quick-copy")
    width = int(values(detail["searchGrid"]["best"])["width"])
    copied = json.loads(admin.get("/models/files/quick-copy%2Fconfig.json"))
    assert (copied["augment"], copied["width"]) == (True, width)
    assert json.loads(admin.get("/models/files/quick%2Fconfig.json")) == {"augment": True, "width": 1}
    admin.delete("/models/quick-copy")


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"resDef": {**RESOURCES, "framework": "PyTorchOnElastic"}}, "resDef.framework", "not Elastic"),
        ({"resDef": {**RESOURCES, "syncMode": "ASYNC"}}, "resDef.syncMode", "not Elastic"),
        ({"resDef": {**RESOURCES, "syncMode": "LATER"}}, "resDef.syncMode", "ASYNC"),
        ({"resDef": {**RESOURCES, "initWeightPath": "nothing.pth"}}, "resDef.initWeightPath", "nothing.pth"),
        ({"resDef": {**RESOURCES, "initWeightPath": "../admin_password"}}, "resDef.initWeightPath", "admin_password"),
        ({"resDef": {**RESOURCES, "workerNum": -1}}, "resDef.workerNum", "1 or more"),
        ({"resDef": {**RESOURCES, "gpuNum": -1}}, "resDef.gpuNum", "0 or more"),
        ({"resDef": {**RESOURCES, "maxiteration": "many"}}, "resDef.maxiteration", "a number"),
        ({"resDef": {**RESOURCES, "maxiteration": "2147483648"}}, "resDef.maxiteration", "2147483647"),
        ({"resDef": {**RESOURCES, "maxiteration": "5", "miniteration": "6"}}, "resDef.miniteration", "1 to 5"),
        ({"resDef": {**RESOURCES, "resourceInstanceId": "nowhere"}}, "resDef.resourceInstanceId", "local"),
        ({"experiments": [{"id": 1, "fixedHyperParams": []}]}, "experiments", "one of hyperParams and experiments"),
        (
            {
                "hyperParams": [],
                "algoDef": {"algorithm": "ExperimentGridSearch"},
                "experiments": [{"id": 1, "fixedHyperParams": []}],
            },
            "experiments[0].fixedHyperParams",
            "at least one parameter",
        ),
        ({"hyperParams": [], "algoDef": {"algorithm": "ExperimentGridSearch"}}, "experiments", "at least one"),
        ({"algoDef": {"algorithm": "Best"}}, "algoDef.algorithm", "Bayesian"),
        ({"hyperParams": [{**RATE, "name": "epoch"}]}, "hyperParams", "epoch"),
        ({"hyperParams": [{**RATE, "maxDbVal": -5}]}, "hyperParams[0].maxDbVal", "at least -4"),
        ({"hyperParams": [{**WIDTH, "name": "epoch"}]}, "hyperParams", "epoch"),
    ],
)
def test_what_will_not_do_is_named(admin: Client, model: str, change: Mapping[str, Any], field: str, says: str) -> None:
    status, message = refused(lambda: admin.post(f"{model}/hypersearch", {**tuning("wrong"), **change}))
    assert status == 400
    assert message.startswith(field)
    assert says in message
    assert admin.get(f"{model}/hypersearch") == []
