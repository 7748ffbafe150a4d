"""Tunings of models through the gateway: their own hyperparameters, searched through trainings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform
from dlmesh_platform.main_job import MainJob
from ibm_cloud_sdk_core.authenticators import BasicAuthenticator
from ibm_wmla.wmla_api_v1 import AlgoDef, DeepLearningImpactV1, HpoHyperParameter, ResDef
from search_room import ENDED, values
from tuning_room import RATE, RESOURCES, ended, model_named, refused, tuning

pytestmark = [pytest.mark.platform, pytest.mark.slow]

SOLVER = {"name": "solvertype", "type": "Discrete", "dataType": "str", "discreateStrVal": ["Adam", "SGD"]}


@pytest.fixture
def model(admin: Client, trained: MainJob) -> Iterator[str]:
    """A model of its own, with the main job's dataset."""
    with model_named(admin, "tuned") as path:
        yield path


def test_a_tuning_finds_parameters_and_makes_models_of_them(admin: Client, model: str) -> None:
    tunings = f"{model}/hypersearch"
    admin.post(tunings, tuning("first", RATE, SOLVER, maxJobNum=3, maxParalleJobNum=2))
    assert refused(lambda: admin.post(tunings, tuning("first")))[0] == 409
    assert refused(lambda: admin.delete(model))[0] == 409
    detail = ended(admin, f"{tunings}/first")
    grid = detail["searchGrid"]
    assert detail["state"] == "FINISHED", detail["statusMessage"]
    assert (grid["progress"], grid["complete"], grid["failed"], grid["running"]) == ("3/3", 3, 0, 0)
    assert (detail["creator"], detail["sigName"], detail["input"]["modelName"]) == ("Admin", "local", "tuned")
    assert detail["input"]["resDef"] == RESOURCES
    assert detail["input"]["hyperParams"][0].items() >= RATE.items()
    best = grid["best"]
    assert best["metricVal"] == max(one["metricVal"] for one in grid["experiments"])
    assert {one["name"] for one in best["metrics"]} >= {"test_accuracy", "train_loss"}
    (application,) = admin.get(f"/scheduler/applications?applicationid={best['appId']}")
    assert (application["tunningname"], application["model"]) == ("first", "tuned")
    # They are the tuning's, and no trainings of the model.
    assert admin.get(f"{model}/trainings") == []
    assert [one["input"]["hpoName"] for one in admin.get(tunings)] == ["first"]

    assert admin.put(f"{tunings}/first/create/tuned-best") is None
    made = admin.get("/models/tuned-best")
    assert made["hyperparameter"]["solvertype"] == values(best)["solvertype"]
    assert made["hyperparameter"]["learningrate"] == pytest.approx(float(values(best)["learningrate"]))
    assert (made["hyperparameter"]["epoch"], made["batchsize"], made["dataset"]) == (1, 64, "shared")
    assert refused(lambda: admin.put(f"{tunings}/first/create/tuned-best"))[0] == 409
    admin.delete("/models/tuned-best")
    assert admin.request("PUT", f"{tunings}/first/update").status_code == 202
    assert admin.get(model)["hyperparameter"]["learningrate"] == made["hyperparameter"]["learningrate"]
    admin.delete(f"{tunings}/first")
    assert refused(lambda: admin.get(f"{tunings}/first"))[0] == 404


def test_parameters_of_the_programs_own(admin: Client, model: str) -> None:
    """It finds them in its config.json, and a model made of the result has them there, beside what was there before."""
    admin.put(f"{model}/files", {"tmpfilePath": "config.json", "tmpfileContent": '{"kept": 1, "width": 2}'})
    width = {
        "name": "width",
        "type": "Discrete",
        "dataType": "int",
        "discreteIntVal": [4, 8],
        "userDefined": True,
    }
    admin.post(f"{model}/hypersearch", tuning("own", width, RATE, maxJobNum=2))
    detail = ended(admin, f"{model}/hypersearch/own")
    assert detail["state"] == "FINISHED", detail["statusMessage"]
    best = detail["searchGrid"]["best"]
    assert {one["name"]: one["userDefined"] for one in best["hyperParams"]} == {"width": True, "learningrate": False}
    admin.put(f"{model}/hypersearch/own/update")
    config = json.loads(admin.get("/models/files/tuned%2Fconfig.json"))
    assert (config["kept"], config["width"]) == (1, int(values(best)["width"]))
    after = admin.get(model)["hyperparameter"]
    assert (after["solvertype"], after["epoch"]) == ("Adam", 1)


def test_stop_and_restart(admin: Client, model: str) -> None:
    tunings = f"{model}/hypersearch"
    epochs = {"name": "epoch", "type": "Fix", "dataType": "int", "fixedVal": "100000"}
    admin.post(tunings, tuning("long", RATE, epochs, maxJobNum=2))
    path = f"{tunings}/long"

    def running() -> int:
        return sum(one["state"] == "RUNNING" for one in admin.get(path)["searchGrid"]["experiments"])

    admin.until(lambda: running() == 1, seconds=240)
    for call in (lambda: admin.delete(path), lambda: admin.put(f"{path}/restart")):
        assert refused(call)[0] == 409
    admin.put(f"{path}/stop")
    detail = ended(admin, path)
    assert (detail["state"], detail["searchGrid"]["experiments"][0]["state"]) == ("STOPPED", "STOPPED")
    # The reference knows no error for that.
    admin.put(f"{path}/stop")
    assert "a trial that has a value" in refused(lambda: admin.put(f"{path}/update"))[1]
    admin.put(f"{path}/restart")
    admin.until(lambda: running() == 1, seconds=240)
    admin.put(f"{path}/force")
    assert admin.get(path)["state"] == "STOPPED"


def test_hyperband_has_iterations_for_its_resource(admin: Client, model: str) -> None:
    resources = {**RESOURCES, "maxiteration": "9", "miniteration": "3"}
    admin.post(f"{model}/hypersearch", tuning("bands", RATE, algorithm="Hyperband", maxJobNum=4, resDef=resources))
    detail = ended(admin, f"{model}/hypersearch/bands")
    assert detail["state"] == "FINISHED", detail["statusMessage"]
    trials = detail["searchGrid"]["experiments"]
    # Three of the first rung, and the best of them with three times as much.
    assert [one["maxiteration"] for one in trials] == [3, 3, 3, 9]
    best = max(trials[:3], key=lambda one: one["metricVal"])
    assert values(trials[3])["learningrate"] == values(best)["learningrate"]


def test_the_published_client(admin: Client, platform: RunningPlatform, model: str) -> None:
    password = (platform.home / "admin_password").read_text().strip()
    published = DeepLearningImpactV1(authenticator=BasicAuthenticator("Admin", password))
    published.set_service_url(platform.url)
    parameter = HpoHyperParameter(
        name="momentum", type="Discrete", data_type="double", discrete_db_val=[0.0, 0.9], user_defined=False
    )
    published.start_model_auto_tuning(
        "tuned",
        "tuned",
        "published",
        ResDef(framework="PyTorch", maxiteration="20", batchsize=32),
        AlgoDef(algorithm="TPE", max_job_num=2),
        hyper_params=[parameter],
    )
    admin.until(
        lambda: published.get_model_auto_tuning_status_by_name("tuned", "published").get_result()["state"] in ENDED,
        seconds=400,
    )
    detail = published.get_model_auto_tuning_status_by_name("tuned", "published").get_result()
    assert detail["state"] == "FINISHED", detail["statusMessage"]
    assert detail["input"]["algoDef"]["objectiveMetric"] == "test_loss"
    assert {values(one)["momentum"] for one in detail["searchGrid"]["experiments"]} == {"0.0", "0.9"}
    assert published.delete_model_auto_tuning("tuned", "published").get_status_code() == 204
    published.http_client.close()


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"hyperParams": [{**RATE, "name": "learningspeed"}]}, "hyperParams", "learningrate"),
        ({"hyperParams": [{**SOLVER, "discreateStrVal": ["Adam", "Best"]}]}, "hyperParams", "Adam"),
        ({"hyperParams": []}, "hyperParams", "at least one parameter"),
        ({"resDef": {**RESOURCES, "framework": "Nothing"}}, "resDef.framework", "PyTorch"),
        ({"resDef": {**RESOURCES, "workerNum": 1000}}, "resDef.workerNum", "slots"),
        ({"hpoName": "a/b"}, "hpoName", "letters, digits"),
        (
            {"algoDef": {"algorithm": "Hyperband", "objectiveMetric": "test_loss", "objective": "minimize"}},
            "resDef.maxiteration",
            "Hyperband",
        ),
    ],
)
def test_what_will_not_do_is_named(admin: Client, model: str, change: Mapping[str, Any], field: str, says: str) -> None:
    status, message = refused(lambda: admin.post(f"{model}/hypersearch", {**tuning("wrong"), **change}))
    assert status == 400
    assert message.startswith(field)
    assert says in message
    assert admin.get(f"{model}/hypersearch") == []


def test_a_model_that_is_not_there(admin: Client, new_user: Callable[[str], Client], model: str) -> None:
    assert refused(lambda: admin.post("/models/nothing/hypersearch", tuning("a") | {"modelName": "nothing"}))[0] == 404
    assert refused(lambda: admin.get("/models/nothing/hypersearch"))[0] == 404
    assert refused(lambda: new_user("eve").post(f"{model}/hypersearch", tuning("eves")))[0] == 403
