"""Validations over REST: values that others compute alike, what is refused, and programs that fail in every way."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from dlmesh_platform.client import ApiError, Client, named
from dlmesh_platform.launch import RunningPlatform
from dlmesh_platform.main_job import MainJob
from dlmesh_sdk.record_datasets import open_records
from sklearn.metrics import accuracy_score, confusion_matrix, top_k_accuracy_score
from testkit.platform import attempts_of, ranks_of

pytestmark = [pytest.mark.platform, pytest.mark.slow]

ENDED = ("FINISHED", "FAILED", "STOPPED")
MAIN = """
import argparse
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--train_dir")
arguments, _ = parser.parse_known_args()
torch.save({}, arguments.train_dir + "/model_epoch_final.pth")
"""
# One training serves them all: the threshold says which of its behaviours is asked for.
INFERENCE = """
import argparse
import json
import os
import sys
import time

import inference_helper
from dlmesh_sdk.record_datasets import open_records

parser = argparse.ArgumentParser()
for option in ("model", "input_dir", "output_dir", "output_file", "prob_thresh", "validate", "label_file"):
    parser.add_argument("--" + option)
options, _ = parser.parse_known_args()
file = os.path.join(options.output_dir, options.output_file)
names = open_records(options.input_dir, None).names()
probabilities = [[1.0, 0.0] for _ in names]
truth = [0 for _ in names]
way = WAYS[float(options.prob_thresh)]

if way == "raises":
    print("about to fail")
    raise RuntimeError("broken on purpose")
if way == "exits":
    sys.exit("no such weights")
if way == "junk":
    open(file, "w").write("What a piece of work is man")
if way == "gigabytes":
    with open(file, "wb") as stream:
        stream.truncate(5 << 30)
if way == "link":
    inference_helper.writeClassificationResult(file + ".other", names, probabilities, None, truth)
    os.symlink(file + ".other", file)
if way == "pipe":
    os.mkfifo(file)
if way == "hangs" or way == "hangs once" and os.environ["DLMESH_JOB_ATTEMPT"] == "1":
    print("waiting")
    time.sleep(1000)
if way == "strange samples":
    names[3:5] = ["strange", "stranger"]
if way == "nan":
    probabilities[7][1] = float("nan")
if way == "labels":
    truth[0] = 99
if way == "no truth":
    truth = None
if way in ("strange samples", "nan", "labels", "no truth", "right", "hangs once"):
    inference_helper.writeClassificationResult(file, names, probabilities, options.label_file, truth)
"""
REASONS = {
    "raises": ["inference.py exited with code 1", "RuntimeError: broken on purpose"],
    "exits": ["inference.py exited with code 1", "no such weights"],
    "junk": ["cannot be measured: validation.json is not JSON"],
    "nothing": ["cannot be measured: inference.py ended without writing validation.json"],
    "gigabytes": ["validation.json has 5368709120 bytes, allowed are 134217728"],
    "link": ["validation.json cannot be read as a plain file"],
    "pipe": ["validation.json is a link or no file"],
    "strange samples": ["missing: '0000000", "not there: 'strange', 'stranger'"],
    "nan": ["ValueError: a probability of 0000000", "is nan, which is no finite number"],
    "labels": ["labels that the dataset does not have: '99'"],
    "no truth": ["inference.py must pass ground_truth when --validate is true"],
}
THRESHOLDS = {way: round(0.01 * place, 2) for place, way in enumerate([*REASONS, "hangs", "hangs once"], 1)}
THRESHOLDS["right"] = 0.0


class Validations:
    """Those of one model."""

    def __init__(self, client: Client, model: str) -> None:
        self.client, self.path = client, f"/models/{model}/validations"

    def start(self, name: str, *metrics: str, **fields: Any) -> None:
        body = {"valName": name, "trainName": "first", "metrics": metrics or ["Top1"], **fields}
        self.client.post(self.path, body)

    def get(self, name: str) -> dict[str, Any]:
        found = [one for one in self.client.get(self.path) if one["valParameters"]["valName"] == name]
        assert len(found) == 1, f"{len(found)} validations are called {name}"
        detail: dict[str, Any] = found[0]
        return detail

    def until(self, name: str, *statuses: str, seconds: float = 60) -> dict[str, Any]:
        self.client.until(lambda: self.get(name)["status"] in statuses, seconds=seconds)
        return self.get(name)

    def refusal(self, method: str, path: str = "", body: Any = None) -> tuple[int, str]:
        with pytest.raises(ApiError) as caught:
            self.client.request(method, self.path + path, json=body)
        return caught.value.status, caught.value.message


@pytest.fixture(scope="module")
def hostile(platform: RunningPlatform, trained: MainJob) -> Iterator[Validations]:
    """A finished training whose inference program does what its threshold says."""
    folder = platform.home / "data" / "hostile"
    folder.mkdir()
    (folder / "main.py").write_text(MAIN)
    ways = {threshold: way for way, threshold in THRESHOLDS.items()}
    (folder / "inference.py").write_text(INFERENCE.replace("WAYS", repr(ways)))
    client = platform.client()
    client.post("/modeltemplates", {"name": "hostile", "path": "hostile", "framework": "PyTorch"})
    fields = {"dataset": "shared", "sig": "local", "accelerator": "Single"}
    client.post("/models", {"name": "hostile", "templatename": "hostile", **fields})
    job = MainJob(client, "digits", prefix="hostile")
    client.post(f"{job.model_path}/trainings", {"trainName": "first", "dlFramework": "PyTorch", "clusterSize": 1})
    job.await_training()
    yield Validations(client, "hostile")
    client.close()


def predictions(admin: Client, trained: MainJob) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and truth of the val split, from the weights alone."""
    folder = Path(trained.training()["path"])
    module = importlib.util.spec_from_file_location("validated_model", folder.parent / "code" / "model.py")
    assert module is not None
    assert module.loader is not None
    code = importlib.util.module_from_spec(module)
    module.loader.exec_module(code)
    shape = {"channels": 1, "height": 16, "width": 16}
    model = code.build_model(10, **shape)
    model.load_state_dict(torch.load(folder / "model_epoch_final.pth", weights_only=True))
    model.eval()
    records = open_records(admin.get("/datasets/shared")["valpath"], functools.partial(code.preprocess, **shape))
    samples = [records[number] for number in range(len(records))]
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.stack([image for image, _ in samples])), 1)
    return probabilities.numpy(), np.array([label for _, label in samples])


def test_values_are_those_of_scikit_learn(admin: Client, trained: MainJob) -> None:
    validations = Validations(admin, "shared")
    probabilities, truth = predictions(admin, trained)
    sure = 0.999
    validations.start("all", "ConfusionMatrix", "top5", "Top1", "TOP1")
    validations.start("sure", "Top1", "ConfusionMatrix", threshold=sure)
    detail = validations.until("all", *ENDED)
    assert detail["status"] == "FINISHED", detail["statusMessage"]
    assert detail["progress"] == 100
    training = trained.training()
    expected = {"modelname": "shared", "dataSet": "shared", "historyServerUrl": training["historyServerUrl"]}
    assert detail == detail | expected
    parameters = {
        "valName": "all",
        "trainName": "first",
        "metrics": ["ConfusionMatrix", "Top5", "Top1"],
        "threshold": 0,
    }
    same = {field: training[field] for field in ("sigId", "sigName", "sigMasterUrl", "user")}
    assert detail["valParameters"] == detail["valParameters"] | parameters | same
    assert detail["appid"] in str(admin.get("/scheduler/applications"))

    matrix, top5, top1 = detail["outPairs"]
    assert [pair["name"] for pair in detail["outPairs"]] == ["ConfusionMatrix", "Top5", "Top1"]
    found = probabilities.argmax(1)
    assert float(top1["value"]) == pytest.approx(accuracy_score(truth, found), rel=1e-5)
    assert float(top5["value"]) == pytest.approx(top_k_accuracy_score(truth, probabilities, k=5), rel=1e-5)
    assert json.loads(matrix["value"]) == {
        "labels": [str(digit) for digit in range(10)],
        "matrix": confusion_matrix(truth, found).tolist(),
    }

    detail = validations.until("sure", *ENDED)
    is_sure = probabilities.max(1) >= sure
    assert 0 < is_sure.sum() < len(truth)
    assert float(named(detail["outPairs"], "name", "Top1")["value"]) == pytest.approx(
        ((found == truth) & is_sure).mean(), rel=1e-5
    )
    counted = json.loads(named(detail["outPairs"], "name", "ConfusionMatrix")["value"])["matrix"]
    assert counted == confusion_matrix(truth[is_sure], found[is_sure], labels=range(10)).tolist()
    for name in ("all", "sure"):
        admin.delete(f"{validations.path}/{name}")
    assert {"all", "sure"}.isdisjoint(one["valParameters"]["valName"] for one in admin.get(validations.path))


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"valName": ""}, 400, "valName"),
        ({"valName": "a/b"}, 400, "valName"),
        ({"trainName": "none"}, 400, "trainName: 'none'"),
        ({"trainName": ""}, 400, "trainName"),
        ({"metrics": []}, 400, "Top1, Top5, ConfusionMatrix"),
        (
            {"metrics": ["Top1", "mAP"]},
            400,
            "metrics: 'mAP' is not valid; allowed: Top1, Top5, ConfusionMatrix (those of",
        ),
        ({"threshold": 1.01}, 400, "threshold: 1.01"),
        ({"threshold": "NaN"}, 400, "threshold"),
        ({"threshold": "much"}, 400, ""),
        ({"maxSilentSeconds": -1}, 400, "maxSilentSeconds: -1"),
    ],
)
def test_bad_requests_name_what_is_wrong(hostile: Validations, fields: dict[str, Any], status: int, words: str) -> None:
    body = {"valName": "bad", "trainName": "first", "metrics": ["Top1"], **fields}
    got, message = hostile.refusal("POST", body=body)
    assert got == status, message
    assert words in message


def test_unknown_names_are_404(hostile: Validations, admin: Client) -> None:
    for method, path in (("DELETE", "/none"), ("PUT", "/none/stop")):
        status, message = hostile.refusal(method, path)
        assert (status, "none" in message) == (404, True)
    nowhere = Validations(admin, "nowhere")
    body = {"valName": "a", "trainName": "first", "metrics": ["Top1"]}
    for method, path, content in (
        ("GET", "", None),
        ("POST", "", body),
        ("DELETE", "/a", None),
        ("PUT", "/a/stop", None),
    ):
        status, message = nowhere.refusal(method, path, content)
        assert (status, "nowhere" in message) == (404, True), message


def test_others_are_forbidden(hostile: Validations, new_user: Callable[[str], Client]) -> None:
    theirs = Validations(new_user("bob"), "hostile")
    body = {"valName": "a", "trainName": "first", "metrics": ["Top1"]}
    for method, path, content in (
        ("GET", "", None),
        ("POST", "", body),
        ("DELETE", "/a", None),
        ("PUT", "/a/stop", None),
    ):
        assert theirs.refusal(method, path, content)[0] == 403, method


def test_programs_that_fail_say_why_and_disturb_nobody(platform: RunningPlatform, hostile: Validations) -> None:
    for way in (*REASONS, "right"):
        hostile.start(way.replace(" ", "-"), "Top1", threshold=THRESHOLDS[way])
    wrong = {}
    for way, words in REASONS.items():
        detail = hostile.until(way.replace(" ", "-"), *ENDED, seconds=90)
        message = detail["statusMessage"]
        attempts = attempts_of(platform, detail)
        if detail["status"] != "FAILED" or not all(word in message for word in words) or len(attempts) != 1:
            wrong[way] = (detail["status"], message, len(attempts))
        assert "outPairs" not in detail or detail["outPairs"] == []
    assert not wrong
    # The author's own lines only, and none of them twice.
    message = hostile.get("raises")["statusMessage"]
    assert "site-packages" not in message
    assert message.count("inference.py exited with code 1") == 1
    assert hostile.until("right", *ENDED)["status"] == "FINISHED"
    assert 0.05 < float(hostile.get("right")["outPairs"][0]["value"]) <= 1


def test_a_running_validation_is_stopped_at_once(
    platform: RunningPlatform, hostile: Validations, admin: Client
) -> None:
    hostile.start("endless", threshold=THRESHOLDS["hangs"])
    assert hostile.refusal("POST", body={"valName": "endless", "trainName": "first", "metrics": ["Top1"]})[0] == 409
    hostile.until("endless", "RUNNING")
    # The rank measures; the program runs in a child of it.
    endless = hostile.get("endless")
    admin.until(lambda: [len(rank.children()) for rank in ranks_of(platform, endless)] == [1], seconds=20)
    (rank,) = ranks_of(platform, endless)
    processes = [rank, *rank.children()]
    assert hostile.refusal("DELETE", "/endless") == (409, "validation 'endless' is RUNNING; stop it first")
    for used in ("/models/hostile/trainings/first", "/models/hostile"):
        with pytest.raises(ApiError, match="endless") as caught:
            admin.delete(used)
        assert caught.value.status == 409
    asked = time.monotonic()
    admin.put(f"{hostile.path}/endless/stop")
    assert hostile.until("endless", *ENDED, seconds=20)["status"] == "STOPPED"
    assert time.monotonic() - asked < 10
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    # Once more changes nothing.
    admin.put(f"{hostile.path}/endless/stop")
    assert hostile.get("endless")["status"] == "STOPPED"
    admin.delete(f"{hostile.path}/endless")
    assert hostile.refusal("DELETE", "/endless")[0] == 404


def test_a_program_that_hangs_is_ended(platform: RunningPlatform, hostile: Validations) -> None:
    hostile.start("silent", threshold=THRESHOLDS["hangs"], maxSilentSeconds=2)
    detail = hostile.until("silent", *ENDED, seconds=60)
    assert detail["status"] == "FAILED"
    assert detail["statusMessage"].startswith("rank 0 gave no sign of life for 2 s; no restart is left of 2\nwaiting")
    assert detail["valParameters"]["maxSilentSeconds"] == 2


def test_a_killed_worker_begins_again_and_finishes_once(
    platform: RunningPlatform, hostile: Validations, admin: Client
) -> None:
    hostile.start("killed", "Top1", "ConfusionMatrix", threshold=THRESHOLDS["hangs once"])
    hostile.until("killed", "RUNNING")
    folder = platform.home / "jobs" / hostile.get("killed")["appid"]
    admin.until(lambda: "waiting" in (folder / "attempt-1/rank-0.out").read_text(), seconds=20)
    (rank,) = ranks_of(platform, hostile.get("killed"))
    others = rank.children()
    os.kill(rank.pid, signal.SIGKILL)
    detail = hostile.until("killed", *ENDED)
    assert detail["status"] == "FINISHED", detail["statusMessage"]
    assert [pair["name"] for pair in detail["outPairs"]] == ["Top1", "ConfusionMatrix"]
    assert sorted(path.name for path in folder.glob("attempt-*")) == ["attempt-1", "attempt-2"]
    assert len(others) == 1
    assert not others[0].is_running()
