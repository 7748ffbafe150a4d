"""The scheduler over REST: every documented field of a finished gang, pages, logs, groups, and the command."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from dlmesh_platform.client import GROUPS, ApiError, Client
from dlmesh_platform.launch import RunningPlatform
from dlmesh_platform.main_job import MainJob

pytestmark = [pytest.mark.platform, pytest.mark.slow]

CONSOLE = "/platform/rest/conductor/v1/instances"
SCHEMAS = Path(__file__).resolve().parents[1] / "contract" / "data" / "schemas.tsv"
# Fields of the reference that have nothing to say of a training on the local engine.
NOT_KNOWN = {"tunningname": "a job does not know the search that it belongs to"}


def documented(schema: str) -> dict[str, str]:
    """Fields and types of a schema of the reference."""
    with SCHEMAS.open(newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {row["field"]: row["type"] for row in rows if row["schema"] == schema}


def check(schema: str, shown: dict[str, Any]) -> None:
    """Every documented field is there and of its type."""
    types = {"string": str, "int32": int, "int64": int | float, "double": int | float}
    wrong = {}
    for field, kind in documented(schema).items():
        if field in NOT_KNOWN:
            continue
        value = shown.get(field)
        if kind.startswith("["):
            fits = isinstance(value, list) and bool(value)
        elif kind in types:
            fits = isinstance(value, types[kind])  # type: ignore[arg-type]
        else:
            fits = isinstance(value, dict)
        if not fits:
            wrong[field] = value
    assert wrong == {}, schema


@pytest.fixture(scope="module")
def gang(trained: MainJob) -> dict[str, Any]:
    """The application of the finished training on two ranks."""
    (found,) = trained.client.get("/scheduler/applications", applicationid=trained.training()["appid"])
    return dict(found)


def test_a_finished_gang_has_every_documented_field(admin: Client, gang: dict[str, Any]) -> None:
    check("SparkApplicationDetail", gang)
    check("DriverDetail", gang["driver"])
    assert len(gang["executors"]) == 2
    for executor in gang["executors"]:
        check("ExecutorDetail", executor)
    for group in admin.get("/scheduler/instances"):
        check("SigAppInstanceDetail", group)
    # What its clients read beyond the reference, by names with dots.
    assert {"gpuslots", "gpumemused.total", "gpudevutil.total"} <= gang.keys()
    assert gang["state"] == gang["driver"]["state"] == "FINISHED"
    assert (gang["type"], gang["dltype"], gang["sigName"], gang["issharedapp"]) == (
        "BATCH",
        "PyTorch",
        "local",
        "false",
    )
    assert gang["submittedtime"] < gang["endtime"]
    assert 0 < gang["apprunduration"] < 600


def test_lists_take_every_parameter(admin: Client, gang: dict[str, Any]) -> None:
    number = gang["applicationid"]
    everything = admin.get("/scheduler/applications")
    assert [row["submittedtime"] for row in everything] == sorted(
        (row["submittedtime"] for row in everything), reverse=True
    )
    for query in (
        {"applicationid": number},
        {"applicationname": gang["applicationname"], "state": "FINISHED"},
        {"driverid": gang["driver"]["id"]},
        {"search": number[:12].upper(), "sigId": gang["sparkinstancegroupid"]},
        {"applicationid": number, "sort": "-gpumemused.total", "order": "asc", "start": "0", "length": "5"},
    ):
        assert number in [row["applicationid"] for row in admin.get("/scheduler/applications", **query)], query
    for field in documented("SparkApplicationDetail"):
        rows = admin.get("/scheduler/applications", sort=f"-{field}", fields=field)
        assert len(rows) == len(everything)
        # A list without elements is printed all the same.
        assert all(row.keys() <= {field, "executors"} for row in rows)
    assert admin.get("/scheduler/instances", fields="uuid,version") == [
        {"uuid": gang["sparkinstancegroupid"], "version": "0.1.0"}
    ]
    for query, status, words in (
        ({"start": "100000"}, 416, "0 to"),
        ({"length": "-1"}, 416, "length"),
        ({"start": "x"}, 400, ""),
        ({"sort": "colour"}, 400, "scheduleName"),
        ({"fields": "colour"}, 400, "scheduleName"),
        ({"state": "asleep"}, 400, "SUBMITTED"),
        ({"sigId": "moon"}, 400, "local"),
        ({"colour": "red"}, 400, ""),
    ):
        with pytest.raises(ApiError) as caught:
            admin.get("/scheduler/applications", **query)
        assert caught.value.status == status, query
        assert words in caught.value.message
    with pytest.raises(ApiError, match="historyServerUrl"):
        admin.get("/scheduler/instances", fields="colour")


def test_the_consoles_paths(admin: Client, gang: dict[str, Any], new_user: Callable[[str], Client]) -> None:
    group, driver = gang["sparkinstancegroupid"], gang["driver"]["id"]
    ended = admin.get(f"{CONSOLE}/{group}/applications", state="FINISHED")
    assert gang["applicationid"] in [row["applicationid"] for row in ended]
    assert admin.get(f"{CONSOLE}/local/applications", state="RUNNING", fields="driver,gpudevutil.total") == []
    logs = f"{CONSOLE}/{group}/applications/{driver}"
    for path, file in (
        (f"{logs}/0/logs/stdout/download", gang["executors"][0]["executorstdout"]),
        (f"{logs}/1/logs/stderr/download", gang["executors"][1]["executorstderr"]),
        (f"{logs}/logs/stdout/download", gang["driver"]["driverstdout"]),
    ):
        answer = admin.request("GET", path)
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.content == Path(file).read_bytes()
    assert b"iteration" in admin.request("GET", f"{logs}/0/logs/stdout/download").content.lower()
    last = admin.request("GET", f"{logs}/0/logs/stdout/download?tailLines=1").content
    assert last.count(b"\n") <= 1
    for path, status in (
        (f"{CONSOLE}/moon/applications", 404),
        (f"{CONSOLE}/local/applications/nobody/logs/stdout/download", 404),
        (f"{logs}/7/logs/stdout/download", 404),
        (f"{logs}/0/logs/stdin/download", 400),
        (f"{logs}/..%2F..%2F0/logs/stdout/download", 404),
    ):
        with pytest.raises(ApiError) as caught:
            admin.request("GET", path)
        assert caught.value.status == status, path
    ann = new_user("ann")
    assert ann.get(f"{CONSOLE}/{group}/applications") == []
    with pytest.raises(ApiError) as foreign:
        ann.request("GET", f"{logs}/0/logs/stdout/download")
    assert foreign.value.status == 403


def test_groups_are_administered(platform: RunningPlatform, admin: Client, new_user: Callable[[str], Client]) -> None:
    ann = new_user("ann")
    made = admin.request("POST", GROUPS, json={"name": "e2e", "slotsPerHost": 1, "policy": "fifo"})
    assert made.status_code == 201
    group = made.json()
    assert group["state"] == "STARTED"
    assert ann.get(f"{GROUPS}/{group['id']}") == group
    assert [each["name"] for each in ann.get(GROUPS)] == ["e2e", "local"]
    for method, path, body in (
        ("POST", GROUPS, {"name": "anns", "slotsPerHost": 1}),
        ("PUT", f"{GROUPS}/e2e", {"hosts": 1}),
        ("DELETE", f"{GROUPS}/e2e", None),
        ("PUT", f"{GROUPS}/e2e/stop", None),
        ("PUT", f"{GROUPS}/e2e/shares/ann", {"weight": 1000}),
    ):
        with pytest.raises(ApiError) as caught:
            ann.request(method, path, json=body)
        assert caught.value.status == 403, path
    for body, status, words in (
        ({"name": "e2e", "slotsPerHost": 1}, 409, "exists already"),
        ({"name": "x", "slotsPerHost": 0}, 400, "slotsPerHost"),
        ({"name": "x", "slotsPerHost": 1, "policy": "luck"}, 400, "fairshare"),
        ({"name": "x", "slotsPerHost": "many"}, 400, ""),
    ):
        with pytest.raises(ApiError) as refused:
            admin.post(GROUPS, body)
        assert refused.value.status == status
        assert words in refused.value.message
    assert admin.put(f"{GROUPS}/e2e", {"maxSlotsPerUser": 1})["maxSlotsPerUser"] == 1
    assert admin.put(f"{GROUPS}/e2e/stop") is None
    assert ann.get(f"{GROUPS}/e2e")["state"] == "STOPPED"
    assert {row["name"]: row["state"] for row in ann.get("/scheduler/instances")} == {
        "local": "STARTED",
        "e2e": "STOPPED",
    }
    admin.put(f"{GROUPS}/e2e/start")
    assert admin.put(f"{GROUPS}/e2e/shares/ann", {"weight": 2}) == {"user": "ann", "weight": 2, "maxSlots": 0}
    assert admin.get(f"{GROUPS}/e2e/shares") == [{"user": "ann", "weight": 2, "maxSlots": 0}]
    admin.delete(f"{GROUPS}/e2e/shares/ann")
    answer = admin.request("DELETE", f"{GROUPS}/e2e")
    assert (answer.status_code, answer.content) == (204, b"")
    with pytest.raises(ApiError) as gone:
        admin.get(f"{GROUPS}/e2e")
    assert gone.value.status == 404
    with pytest.raises(ApiError) as kept:
        admin.delete(f"{GROUPS}/local")
    assert kept.value.status == 409
    trail = (platform.home / "log" / "audit.jsonl").read_text()
    assert "InstanceGroupService/DeleteInstanceGroup" in trail


def test_the_command_administers_groups_and_shows_the_queue(
    platform: RunningPlatform, admin: Client, trained: MainJob
) -> None:
    def dlmesh(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "dlmesh_platform.cli", *arguments],
            env={"PATH": "/usr/bin:/bin", "DLMESH_HOME": str(platform.home), "COLUMNS": "300"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def words(text: str, name: str) -> list[str]:
        (line,) = [line for line in text.splitlines() if name in line]
        return re.findall(r"[^\s│]+", line)

    dlmesh("group", "create", "nights", "--slots-per-host", "1", "--policy", "fifo")
    dlmesh("group", "share", "nights", "ann", "--weight", "2")
    dlmesh("group", "share", "nights", "ann", "--max-slots", "3")
    assert words(dlmesh("group", "share", "nights"), "ann") == ["ann", "2", "3"]
    dlmesh("group", "stop", "nights")
    dlmesh("group", "set", "nights", "--max-slots-per-user", "1", "--policy", "priority")
    assert words(dlmesh("group", "list"), "nights")[:8] == [
        "nights",
        "STOPPED",
        "local",
        "1",
        "1",
        "0",
        "priority",
        "1",
    ]
    name = "waits-in-e2e"
    model = admin.get("/models/shared")
    admin.post(
        "/models", {"name": name, "templatename": model["templatename"], "dataset": model["dataset"], "sig": "nights"}
    )
    admin.post(f"/models/{name}/trainings", {"trainName": "t", "dlFramework": "PyTorch", "clusterSize": 1})
    admin.until(lambda: "is stopped" in dlmesh("queue", "--group", "nights"), seconds=30)
    shown = words(dlmesh("queue"), "nights")
    assert "waits" in shown
    admin.put(f"/models/{name}/trainings/t/stop")
    admin.until(lambda: "nights" not in dlmesh("queue"), seconds=30)
    dlmesh("group", "share", "nights", "ann", "--remove")
    dlmesh("group", "start", "nights")
    dlmesh("group", "delete", "nights")


def test_group_paths_want_credentials(platform: RunningPlatform) -> None:
    for path in (GROUPS, f"{CONSOLE}/local/applications"):
        assert requests.get(platform.url + path, timeout=10).status_code == 401
