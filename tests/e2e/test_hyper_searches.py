"""Hyperparameter searches through the gateway, as plain requests, notebooks and the published client start them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from dlmesh_platform.client import ApiError, Client
from dlmesh_platform.launch import RunningPlatform
from ibm_cloud_sdk_core.authenticators import BasicAuthenticator
from ibm_wmla.wmla_api_v1 import DeepLearningImpactV1
from search_room import ARGUMENTS, PROGRAM, RATE, WAIT, ended, refusal, search, start, tar_of, values

pytestmark = [pytest.mark.platform, pytest.mark.slow]


def test_a_search_from_start_to_deletion(admin: Client, platform: RunningPlatform) -> None:
    name = start(admin, search("first", maxJobNum=4, maxParalleJobNum=2))
    assert name == "first"
    detail = ended(admin, name)
    assert detail["state"] == "FINISHED", detail["statusMessage"]
    assert (detail["progress"], detail["complete"], detail["failed"], detail["running"]) == ("4/4", 4, 0, 0)
    assert (detail["creator"], detail["hpoName"], len(detail["duration"])) == ("Admin", "first", 8)
    experiments = detail["experiments"]
    assert [one["id"] for one in experiments] == [1, 2, 3, 4]
    best = min(experiments, key=lambda one: float(one["metricVal"]))
    assert detail["best"] == best
    assert best["metricVal"] == pytest.approx((float(values(best)["rate"]) - 0.3) ** 2 + 0.05)
    assert best["hyperParams"][0]["dataType"] == "double"
    assert {one["name"] for one in best["metrics"]} == {"loss", "accuracy"}
    assert best["endTime"] >= best["startTime"] >= detail["createtime"]
    # Each of them is a task that execs and applications know, though no list of tasks is full of them.
    task = admin.get(f"/execs/{best['appId']}")
    assert (task["state"], task["args"], task["userName"]) == ("FINISHED", ARGUMENTS, "Admin")
    log = admin.request("GET", f"/execs/{best['appId']}/log", params={"logType": "outlog"}).text
    assert f"'rate': {values(best)['rate']}" in log
    assert f"['--note', 'of a trial'] {best['id']}" in log
    assert best["appId"] not in {row["id"] for row in admin.get("/execs")}
    (application,) = admin.get(f"/scheduler/applications?applicationid={best['appId']}")
    assert application["tunningname"] == "first"
    assert name in {one["hpoName"] for one in admin.get("/hypersearch")}
    assert admin.get(f"/hypersearch/{name}/experiments?sort=metricVal&length=1") == [best]
    assert admin.get(f"/hypersearch/{name}?start=1&length=2")["experiments"] == experiments[1:3]

    admin.delete(f"/hypersearch/{name}")
    assert refusal(admin, "GET", f"/hypersearch/{name}")[0] == 400
    assert refusal(admin, "DELETE", f"/hypersearch/{name}")[0] == 404
    admin.until(lambda: not list((platform.home / "tuning").glob("[0-9a-f]*")), seconds=240)
    for one in experiments:
        admin.until(lambda one=one: not (platform.home / "execs" / one["appId"]).exists(), seconds=240)
    assert refusal(admin, "GET", f"/execs/{best['appId']}")[0] == 400


def test_as_notebooks_send_it(admin: Client) -> None:
    """A literal, words in capitals, `data` twice, the file's part named after the file, a single file, no name."""
    data = repr(
        search("", RATE, maxJobNum=2, objective="Minimize", maxParalleJob=2)
        | {"modelSpec": {"sigName": "local", "args": "--exec-start PyTorch --model-main train.py"}}
    )
    parts = [("train.py", ("train.py", PROGRAM)), ("data", ("data", data)), ("data", (None, data))]
    name = admin.request("POST", "/hypersearch", files=parts, headers={"Accept": "application/json"}).json()
    assert name.startswith("Admin-hpo-")
    assert ended(admin, name)["state"] == "FINISHED"
    admin.delete(f"/hypersearch/{name}")


@pytest.fixture
def published(platform: RunningPlatform) -> Iterator[DeepLearningImpactV1]:
    password = (platform.home / "admin_password").read_text().strip()
    service = DeepLearningImpactV1(authenticator=BasicAuthenticator("Admin", password))
    service.set_service_url(platform.url)
    yield service
    service.http_client.close()


def test_the_published_client(admin: Client, published: DeepLearningImpactV1) -> None:
    data = json.dumps(search("published", maxJobNum=2))
    name = published.start_hpo(file=io.BytesIO(tar_of({"main.py": PROGRAM})), data=data).get_result()
    assert name == "published"
    assert ended(admin, name) == published.get_one_hpo(name).get_result()
    assert name in {one["hpoName"] for one in published.get_all_hpo().get_result()}
    assert [one["name"] for one in published.get_all_hpo_algorithm(type="BUILD_IN").get_result()][:4] == [
        "Random",
        "TPE",
        "Bayesian",
        "Nevergrad",
    ]
    assert published.get_one_algorithm("Hyperband").get_result()["type"] == "BUILD_IN"
    assert published.delete_one_hpo(name).get_status_code() == 204


@pytest.mark.parametrize("algorithm", ["Tpe", "Bayesian", "Nevergrad", "ASHA", "Hyperband"])
def test_algorithms(admin: Client, algorithm: str) -> None:
    is_by_resource = algorithm in ("ASHA", "Hyperband")
    trials = 13 if is_by_resource else 8
    settings: dict[str, Any] = {"algorithm": algorithm, "maxJobNum": trials, "maxParalleJobNum": 2}
    parameters = [{"name": "RandomSeed", "value": "5"}]
    if is_by_resource:
        parameters += [{"name": "ResourceName", "value": "epochs"}, {"name": "ResourceValue", "value": "9"}]
    else:
        own = {"Tpe": ("WarmUp", "3"), "Bayesian": ("InitPoints", "3"), "Nevergrad": ("Optimizer", "cma")}[algorithm]
        parameters.append(dict(zip(("name", "value"), own, strict=True)))
    optimizer = {"name": "optimizer", "type": "Discrete", "dataType": "STR", "discreateStrVal": ["sgd", "adam"]}
    layers = {"name": "layers", "type": "range", "dataType": "INT", "minIntVal": 1, "maxIntVal": 3}
    fixed = {"name": "size", "type": "Fix", "dataType": "int", "fixedVal": "64", "userDefined": True}
    name = start(admin, search(f"of-{algorithm}", RATE, optimizer, layers, fixed, algoParams=parameters, **settings))
    detail = ended(admin, name)
    assert (detail["state"], detail["complete"]) == ("FINISHED", trials), detail["statusMessage"]
    assert {values(one)["size"] for one in detail["experiments"]} == {"64"}
    if is_by_resource:
        reached = {"1", "3", "9"} if algorithm == "Hyperband" else {"1", "3"}
        assert {values(one)["epochs"] for one in detail["experiments"]} >= reached
        # Those that went on found what they went on from.
        assert detail["failed"] == 0
        assert {one["maxiteration"] for one in detail["experiments"]} == {
            int(values(one)["epochs"]) for one in detail["experiments"]
        }
    admin.delete(f"/hypersearch/{name}")


def test_experiments_as_given(admin: Client) -> None:
    given = [
        {"id": number, "hyperParams": [{"name": "rate", "dataType": "double", "fixedVal": rate}, *more]}
        for number, rate, more in (
            (7, 0.5, []),
            (9, "0.25", []),
            (11, 0.1, [{"name": "fails", "dataType": "int", "fixedVal": 1}]),
        )
    ]
    data = search("given", algorithm="ExperimentGridSearch", experiments=given, maxJobNum=-1, maxParalleJobNum=3)
    detail = ended(admin, start(admin, data))
    assert (detail["state"], detail["progress"]) == ("FINISHED", "3/3")
    states = {one["id"]: one["state"] for one in detail["experiments"]}
    assert states == {7: "FINISHED", 9: "FINISHED", 11: "FAILED"}
    assert detail["best"]["id"] == 9
    assert "this trial fails" in detail["experiments"][2]["statusMessage"]
    admin.delete("/hypersearch/given")


def test_stop_restart_and_force(admin: Client) -> None:
    start(admin, search("long", RATE, WAIT, maxParalleJobNum=2))
    path = "/hypersearch/long"

    def running() -> list[str]:
        return [one["appId"] for one in admin.get(path)["experiments"] if one["state"] == "RUNNING"]

    admin.until(lambda: len(running()) == 2, seconds=240)
    for method, refused in (("DELETE", path), ("DELETE", "/hypersearch"), ("PUT", f"{path}/restart")):
        assert refusal(admin, method, refused)[0] == 409
    admin.put(path)
    detail = ended(admin, "long")
    assert detail["state"] == "STOPPED"
    assert [one["state"] for one in detail["experiments"]] == ["STOPPED", "STOPPED"]
    status, message = refusal(admin, "PUT", path)
    assert status == 400
    assert "is already stopped" in message

    admin.put(f"{path}/restart")
    admin.until(lambda: len(running()) == 2, seconds=240)
    again = admin.get(path)
    assert [values(one) for one in again["experiments"]] == [values(one) for one in detail["experiments"]]
    tasks = running()
    admin.put(f"{path}/force")
    assert admin.get(path)["state"] == "STOPPED"
    for task in tasks:
        admin.until(lambda task=task: admin.get(f"/execs/{task}")["state"] == "KILLED", seconds=240)
    admin.until(lambda: admin.get(path)["running"] == 0, seconds=240)
    admin.delete(path)


def test_a_finished_search_goes_on(admin: Client) -> None:
    start(admin, search("more", maxJobNum=2))
    before = ended(admin, "more")
    status, message = refusal(admin, "PUT", "/hypersearch/more/restart")
    assert (status, "more than the 2 that it has run" in message) == (400, True)
    admin.put("/hypersearch/more/restart?maxJobNum=4")
    after = ended(admin, "more")
    assert after["progress"] == "4/4"
    assert after["experiments"][:2] == before["experiments"]
    admin.delete("/hypersearch/more")


def test_a_hung_trial_has_a_limit(admin: Client) -> None:
    start(admin, search("hung", RATE, WAIT, maxJobNum=1, maxTrialMinutes=0.02))
    detail = ended(admin, "hung")
    (trial,) = detail["experiments"]
    assert (detail["state"], trial["state"]) == ("FAILED", "FAILED")
    assert trial["statusMessage"].startswith("ran longer than the allowed 1.2 seconds")
    assert "no trial ended with a value (1 failed" in detail["statusMessage"]
    admin.delete("/hypersearch/hung")


def test_others_see_nothing_of_it(admin: Client, new_user: Callable[[str], Client]) -> None:
    ann, bob = new_user("ann"), new_user("bob")
    start(ann, search("anns", maxJobNum=1))
    assert [one["hpoName"] for one in ann.get("/hypersearch")] == ["anns"]
    assert bob.get("/hypersearch") == []
    for method, path in (("GET", ""), ("PUT", ""), ("PUT", "/force"), ("PUT", "/restart"), ("DELETE", "")):
        assert refusal(bob, method, f"/hypersearch/anns{path}")[0] == 403
    detail = ended(ann, "anns")
    assert refusal(bob, "GET", f"/execs/{detail['experiments'][0]['appId']}")[0] == 403
    assert "anns" in {one["hpoName"] for one in admin.get("/hypersearch")}
    assert bob.request("DELETE", "/hypersearch").status_code == 204
    assert ann.get("/hypersearch")[0]["hpoName"] == "anns"
    assert ann.request("DELETE", "/hypersearch").status_code == 204
    assert ann.get("/hypersearch") == []


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"algoDef": None}, "algoDef", "has to be given"),
        ({"hyperParams": None}, "hyperParams", "at least one parameter"),
        ({"hyperParams": [{**RATE, "step": "2"}]}, "hyperParams[0].step", "at most 1"),
        ({"hyperParams": [{**RATE, "maxDbVal": -1}]}, "hyperParams[0].maxDbVal", "at least 0"),
        ({"experiments": [{"id": 1}]}, "experiments", "one of hyperParams and experiments"),
        ({"modelSpec": {"sigName": "local"}}, "modelSpec.args", "has to be given"),
        ({"modelSpec": {"sigName": "nowhere", "args": ARGUMENTS}}, "modelSpec.sigName", "local"),
        ({"modelSpec": {"sigName": "local", "args": "--exec-start Nothing --model-main main.py"}}, "", "PyTorch"),
        ({"modelSpec": {"sigName": "local", "args": "--exec-start PyTorch --model-main a.py"}}, "", "main.py"),
        ({"modelSpec": {"sigName": "local", "args": f"{ARGUMENTS} 'open"}}, "modelSpec.args", ""),
        ({"hpoName": "algorithm"}, "hpoName", "reserved"),
        ({"hpoName": "a/b"}, "hpoName", "letters, digits"),
        (
            {"algoDef": {"algorithm": "Best", "objectiveMetric": "loss", "objective": "minimize"}},
            "algoDef.algorithm",
            "TPE",
        ),
        ({"algoDef": {"algorithm": "Random", "objective": "minimize"}}, "algoDef.objectiveMetric", "has to be given"),
        (
            {"algoDef": {"algorithm": "Hyperband", "objectiveMetric": "loss", "objective": "minimize"}},
            "algoParams.ResourceName",
            "has to be given",
        ),
        (
            {
                "algoDef": {
                    "algorithm": "Nevergrad",
                    "algoParams": [{"name": "Optimizer", "value": "BO"}],
                    "objectiveMetric": "loss",
                    "objective": "minimize",
                }
            },
            "algoParams.Optimizer",
            "NGOpt",
        ),
    ],
)
def test_what_will_not_do_is_named(admin: Client, change: Mapping[str, Any], field: str, says: str) -> None:
    data = {name: value for name, value in {**search("wrong"), **change}.items() if value is not None}
    with pytest.raises(ApiError) as caught:
        start(admin, data)
    assert caught.value.status == 400
    assert caught.value.message.startswith(field or "--")
    assert says in caught.value.message
    assert refusal(admin, "GET", "/hypersearch/wrong")[0] == 400


def test_broken_forms(admin: Client, platform: RunningPlatform) -> None:
    data = {"data": (None, json.dumps(search("broken")))}
    for parts, says in (
        ({"file": ("main.py", PROGRAM)}, "data: "),
        ({**data}, "file: "),
        ({"data": (None, "{"), "file": ("main.py", PROGRAM)}, "data: "),
        ({"data": (None, "[]"), "file": ("main.py", PROGRAM)}, "data: "),
        ({**data, "file": ("m.tar", tar_of({"../main.py": PROGRAM}))}, "file, member: "),
    ):
        status, message = refusal(admin, "POST", "/hypersearch", files=parts)
        assert (status, message.startswith(says)) == (400, True), message
    # Nothing is left of them, when what other tests deleted has gone, too.
    admin.until(lambda: not list((platform.home / "tuning").iterdir()), seconds=240)
    start(admin, search("broken", maxJobNum=1))
    status, message = refusal(
        admin, "POST", "/hypersearch", files={**data, "file": ("m.modelDir.tar", tar_of({"main.py": PROGRAM}))}
    )
    assert (status, "'broken' exists already" in message) == (409, True)
    ended(admin, "broken")
    admin.delete("/hypersearch/broken")
