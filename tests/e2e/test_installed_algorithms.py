"""Algorithms that users install, through the gateway: by path and by upload, in other interpreters, and unruly ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform, launch
from search_room import PLUGINS, RATE, ended, install, refusal, search, start, tar_of, values

pytestmark = [pytest.mark.platform, pytest.mark.slow]

INSTALL = "/hypersearch/algorithm/install"
COARSE = {**RATE, "step": "0.25"}
SOLVER = {"name": "solver", "type": "Discrete", "dataType": "STR", "discreateStrVal": ["sgd", "adam"]}
# Suggests the middle, once, and says where it runs.
PRINTING = """
import os, sys
from plugins.core.base_plugin_opt import BasePluginOptimizer
from plugins.core.logger import logger

class PluginOptimizer(BasePluginOptimizer):
    def search(self, number_samples, last_exp_results):
        print("interpreter", sys.executable)
        logger.debug("a detail")
        logger.warning("a warning")
        return [] if last_exp_results else [{"rate": 0.5}]
"""


def installed_by_path(admin: Client, platform: RunningPlatform, name: str, source: str, **more: Any) -> str:
    folder = platform.home / "data" / "plugins" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "optimizer.py").write_text(source)
    return install(admin, {"name": name, "path": f"plugins/{name}", **more})


def removed(admin: Client, name: str) -> None:
    admin.delete(f"/hypersearch/algorithm/{name}")
    assert refusal(admin, "GET", f"/hypersearch/algorithm/{name}")[0] == 400
    assert refusal(admin, "DELETE", f"/hypersearch/algorithm/{name}")[0] == 404


@pytest.mark.parametrize("name", ["grid", "evolution"])
def test_a_plugin_installs_both_ways_and_runs(admin: Client, platform: RunningPlatform, name: str) -> None:
    source = (PLUGINS / name / "optimizer.py").read_text()
    tried = []
    for way in ("path", "upload"):
        if way == "path":
            assert installed_by_path(admin, platform, name, source) == name
        else:
            assert install(admin, {"name": name}, tar_of({"optimizer.py": source}, "")) == name
        (listed,) = admin.get("/hypersearch/algorithm?type=USER_PLUGIN")
        assert (listed["name"], listed["type"], listed["creator"]) == (name, "USER_PLUGIN", "Admin")
        assert admin.get(f"/hypersearch/algorithm/{name}") == listed
        again = {"data": (None, json.dumps({"name": name, "path": f"plugins/{name}"}))}
        status, message = refusal(admin, "POST", INSTALL, files=again)
        assert (status, f"{name!r} exists already" in message) == (409, True)
        seed = [{"name": "RandomSeed", "value": "5"}] if name == "evolution" else []
        parameters = (COARSE, SOLVER) if name == "grid" else (RATE, SOLVER)
        data = search("plugged", *parameters, algorithm=name, maxJobNum=14, maxParalleJobNum=2, algoParams=seed)
        detail = ended(admin, start(admin, data))
        assert (detail["state"], detail["failed"]) == ("FINISHED", 0), detail["statusMessage"]
        # Whatever it was told last: what two that run at once came to is told in the order of the trials.
        tried.append([(float(values(one)["rate"]), values(one)["solver"]) for one in detail["experiments"]])
        admin.delete("/hypersearch/plugged")
        removed(admin, name)
    assert tried[0] == tried[1]
    if name == "grid":
        # All combinations in their order, and nothing after them.
        assert tried[0] == [(rate, solver) for rate in (0.0, 0.25, 0.5, 0.75, 1.0) for solver in ("sgd", "adam")]
    else:
        assert len(tried[0]) == 14
        assert all(0 <= rate <= 1 for rate, _ in tried[0])
        # It learns: what came late is nearer to the best rate than what chance found first.
        assert min(abs(rate - 0.3) for rate, _ in tried[0][4:]) <= min(abs(rate - 0.3) for rate, _ in tried[0][:4])


@pytest.mark.parametrize("level", ["DEBUG", "error"])
def test_another_interpreter_and_its_log(admin: Client, platform: RunningPlatform, tmp_path: Path, level: str) -> None:
    """condaHome and condaEnv say which Python runs it, logLevel what is kept of its log; remoteExec is kept."""
    python = platform.home / "data" / "conda" / "envs" / "tuning" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.unlink(missing_ok=True)
    python.symlink_to(Path(sys.executable).resolve())
    settings = {"condaHome": str(python.parents[3]), "condaEnv": "tuning", "logLevel": level, "remoteExec": True}
    installed_by_path(admin, platform, "elsewhere", PRINTING, **settings)
    detail = admin.get("/hypersearch/algorithm/elsewhere")
    assert detail.items() >= {**settings, "logLevel": level.upper(), "path": "plugins/elsewhere"}.items()
    found = ended(admin, start(admin, search("elsewhere", algorithm="elsewhere")))
    assert (found["state"], [values(one) for one in found["experiments"]]) == ("FINISHED", [{"rate": "0.5"}])
    assert found["statusMessage"] == "there is nothing left to try"
    (log,) = (platform.home / "tuning").glob("*/plugin.log")
    text = log.read_text()
    assert f"interpreter {python}" in text
    assert ("a detail" in text, "a warning" in text) == ((True, True) if level == "DEBUG" else (False, False))
    admin.delete("/hypersearch/elsewhere")
    removed(admin, "elsewhere")
    admin.until(lambda: not log.exists(), seconds=240)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"condaHome": "/nowhere"}, "condaHome"),
        ({"condaHome": "relative"}, "condaHome"),
        ({"condaEnv": "tuning"}, "condaHome"),
        ({"condaEnv": "/nowhere/tuning"}, "condaEnv"),
        ({"logLevel": "LOUD"}, "logLevel"),
        ({"name": "install"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": ""}, "name"),
        ({"path": "plugins/nothing"}, "path"),
        ({"path": "../run"}, "path"),
        ({"path": ""}, "path"),
    ],
)
def test_what_cannot_be_installed_is_named(
    admin: Client, platform: RunningPlatform, settings: Mapping[str, str], field: str
) -> None:
    folder = platform.home / "data" / "plugins" / "right"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "optimizer.py").write_text(PRINTING)
    data = {"name": "wrong", "path": "plugins/right", **settings}
    status, message = refusal(admin, "POST", INSTALL, files={"data": (None, json.dumps(data))})
    assert (status, message.partition(":")[0]) == (400, field), message
    assert refusal(admin, "GET", "/hypersearch/algorithm/wrong")[0] == 400


def test_one_that_is_used_stays(admin: Client, platform: RunningPlatform) -> None:
    installed_by_path(admin, platform, "busy", PRINTING)
    wait = {"name": "wait", "type": "Fix", "dataType": "int", "fixedVal": 1}
    start(admin, search("uses-it", RATE, wait, algorithm="busy"))
    status, message = refusal(admin, "DELETE", "/hypersearch/algorithm/busy")
    assert (status, "'uses-it'" in message) == (409, True)
    assert refusal(admin, "DELETE", "/hypersearch/algorithm/Random")[0] == 400
    admin.put("/hypersearch/uses-it/force")
    admin.delete("/hypersearch/uses-it")
    removed(admin, "busy")


UNRULY = {
    "raises": (
        "raise ZeroDivisionError('no idea')",
        "search() raised ZeroDivisionError: no idea (optimizer.py, line 6",
    ),
    "loops": ("while True: pass", "search() took longer than"),
    "leaves": ("import os; os._exit(3)", "3"),
    "junk": ("return 'rate=0.5'", "search() returned str, not a list"),
    "beside": ("return [{'rate': 7.0}]", "rate"),
    "megabytes": ("return [{'rate': 'x' * 20_000_000}]", "bytes"),
}


def unruly(body: str) -> str:
    return f"""
from plugins.core.base_plugin_opt import BasePluginOptimizer

class PluginOptimizer(BasePluginOptimizer):
    def search(self, number_samples, last_exp_results):
        {body}
"""


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """A platform that gives algorithms eight seconds to think."""
    with launch(tmp_path_factory.mktemp("impatient") / "home", {"DLMESH_TUNING_PLUGIN_SECONDS": "8"}) as platform:
        yield platform


def test_unruly_ones_fail_their_search_only(impatient: RunningPlatform) -> None:
    client = impatient.client()
    for name, (body, _) in UNRULY.items():
        install(client, {"name": name}, tar_of({"optimizer.py": unruly(body)}, ""))
        start(client, search(name, algorithm=name))
    start(client, search("well-behaved", algorithm="TPE", maxJobNum=5, maxParalleJobNum=2))
    assert ended(client, "well-behaved")["complete"] == 5
    for name, (_, says) in UNRULY.items():
        detail = ended(client, name)
        assert (detail["state"], detail["experiments"]) == ("FAILED", []), name
        assert f"algorithm {name}: " in detail["statusMessage"]
        assert says in detail["statusMessage"]
    client.close()


def test_megabytes_are_printed(admin: Client, platform: RunningPlatform) -> None:
    """The newest of them are kept."""
    body = "print('x' * 40_000_000); print('the end'); return [] if last_exp_results else [{'rate': 0.5}]"
    install(admin, {"name": "chatty"}, tar_of({"optimizer.py": unruly(body)}, ""))
    detail = ended(admin, start(admin, search("chatty", algorithm="chatty")))
    assert (detail["state"], [values(one) for one in detail["experiments"]]) == ("FINISHED", [{"rate": "0.5"}]), detail
    (log,) = (platform.home / "tuning").glob("*/plugin.log")
    assert log.stat().st_size < 20_000_000
    assert log.read_text().endswith("x\nthe end\n")
    admin.delete("/hypersearch/chatty")
    removed(admin, "chatty")
