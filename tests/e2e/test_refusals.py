"""Bad input, other people's things and missing credentials over REST: status, JSON body, a message that helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import requests
from dlmesh_platform.client import API, ApiError, Client
from dlmesh_platform.launch import RunningPlatform
from dlmesh_platform.main_job import MainJob

pytestmark = [pytest.mark.platform, pytest.mark.slow]

DATASET = {
    "name": "bad",
    "dbbackend": "LMDB",
    "datasourcetype": "IMAGEFORCLASSIFICATION",
    "sigid": "local",
    "imagedetail": {"trainimagepath": "digits", "imagetype": "Gray", "height": 16, "width": 16},
}
MODEL = {"name": "bad", "templatename": "pytorch-image-classification", "dataset": "shared", "sig": "local"}
TRAINING = {"trainName": "bad", "dlFramework": "PyTorch", "clusterSize": 2}


def refusal(client: Client, method: str, path: str, **options: Any) -> tuple[int, str]:
    """Status and message; fails when it was not refused or the body is not the documented JSON."""
    try:
        answer = client.request(method, path, **options)
    except ApiError as error:
        return error.status, error.message
    raise AssertionError(f"{method} {path} was not refused: {answer.status_code} {answer.text[:300]}")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/datasets/none", None, 404, "none"),
        ("DELETE", "/datasets/none", None, 404, "none"),
        ("GET", "/models/none", None, 404, "none"),
        ("GET", "/models/shared/trainings/none", None, 404, "none"),
        ("POST", "/models/none/trainings", TRAINING, 404, "none"),
        ("GET", "/modeltemplates/none", None, 404, "none"),
        ("GET", "/inferences/none", None, 404, "none"),
        ("GET", "/nowhere", None, 404, ""),
        ("POST", "/datasets", {**DATASET, "name": "shared"}, 409, "shared"),
        ("POST", "/models", {**MODEL, "name": "shared"}, 409, "shared"),
        ("POST", "/models/shared/trainings", {**TRAINING, "trainName": "first"}, 409, "first"),
        ("POST", "/datasets", {**DATASET, "name": "a/b"}, 400, "name"),
        ("POST", "/datasets", {**DATASET, "sigid": "moon"}, 400, "local"),
        ("POST", "/datasets", {**DATASET, "datasourcetype": "PAINTINGS"}, 400, "datasourcetype"),
        (
            "POST",
            "/datasets",
            {**DATASET, "imagedetail": {**DATASET["imagedetail"], "trainimagepath": "/etc"}},  # type: ignore[dict-item]
            400,
            "trainimagepath",
        ),
        (
            "POST",
            "/datasets",
            {**DATASET, "imagedetail": {**DATASET["imagedetail"], "trainimagepath": "../.."}},  # type: ignore[dict-item]
            400,
            "trainimagepath",
        ),
        ("POST", "/models", {**MODEL, "templatename": "none"}, 400, "templatename"),
        ("POST", "/models", {**MODEL, "dataset": "none"}, 400, "dataset"),
        ("POST", "/models/shared/trainings", {**TRAINING, "clusterSize": 0}, 400, "clusterSize"),
        ("POST", "/models/shared/trainings", {**TRAINING, "clusterSize": 5000}, 400, "clusterSize"),
        ("POST", "/models/shared/trainings", {**TRAINING, "dlFramework": "Abacus"}, 400, "PyTorch"),
        ("POST", "/models/shared/trainings", {**TRAINING, "clusterSize": "many"}, 400, ""),
        ("POST", "/models/shared/validations", {"valName": "bad", "trainName": "none", "metrics": ["Top1"]}, 0, "none"),
        ("POST", "/models/shared/validations", {"valName": "bad", "trainName": "first", "metrics": ["X"]}, 400, "Top1"),
        ("POST", "/inferences", {"modelName": "shared", "trainName": "none"}, 0, "none"),
    ],
)
def test_refused_with_words(
    admin: Client, trained: MainJob, method: str, path: str, body: Any, status: int, words: str
) -> None:
    got, message = refusal(admin, method, path, json=body)
    assert got in ((400, 404) if status == 0 else (status,)), message
    assert words in message


def test_malformed_json_is_json(platform: RunningPlatform, admin: Client) -> None:
    password = (platform.home / "admin_password").read_text().strip()
    answer = requests.post(
        f"{platform.url}{API}/datasets",
        data=b'{"name": ',
        headers={"content-type": "application/json"},
        auth=("Admin", password),
        timeout=10,
    )
    assert answer.status_code == 400
    assert {"code", "message"} <= answer.json().keys()


def test_nothing_is_left_of_what_was_refused(admin: Client, trained: MainJob) -> None:
    assert "bad" not in [each["name"] for each in admin.get("/datasets")]
    assert "bad" not in [each["name"] for each in admin.get("/models")]
    assert "bad" not in admin.get("/models/shared/trainingnames")


@pytest.mark.parametrize("path", [f"{API}/datasets", f"{API}/models/shared", f"{API}/conf", "/", "/nowhere"])
@pytest.mark.parametrize("credentials", [None, ("Admin", "wrong"), ("nobody", "x")])
def test_401_without_credentials(platform: RunningPlatform, path: str, credentials: tuple[str, str] | None) -> None:
    answer = requests.get(platform.url + path, auth=credentials, timeout=10)
    assert answer.status_code == 401
    assert answer.json()["message"]


def test_health_needs_none(platform: RunningPlatform) -> None:
    assert requests.get(f"{platform.url}/healthz", timeout=10).status_code == 200


def test_roles(admin: Client, trained: MainJob, new_user: Callable[[str], Client]) -> None:
    ann, bob = new_user("ann"), new_user("bob")
    ann.post("/datasets", {**DATASET, "name": "anns"})
    assert [each["name"] for each in ann.get("/datasets")] == ["anns"]
    assert bob.get("/datasets") == []
    assert {"anns", "shared"} <= {each["name"] for each in admin.get("/datasets")}
    for method, path in (
        ("GET", "/datasets/anns"),
        ("DELETE", "/datasets/anns"),
        ("GET", "/models/shared"),
        ("GET", "/models/shared/trainings"),
        ("DELETE", "/models/shared"),
        ("PUT", "/models/shared/trainings/first/stop"),
    ):
        assert refusal(bob, method, path)[0] == 403, path
    assert refusal(bob, "POST", "/datasets", json={**DATASET, "name": "anns"})[0] == 409
    assert refusal(bob, "GET", "/platform/rest/dlmesh/v1/users")[0] == 403
    ann.wait(lambda: ann.get("/datasets/anns"), seconds=60)
    ann.delete("/datasets/anns")
    assert refusal(ann, "GET", "/datasets/anns")[0] == 404
