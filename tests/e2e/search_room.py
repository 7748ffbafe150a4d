"""Searches as the tests of them start, await and read them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dlmesh_platform.client import ApiError, Client

PLUGINS = Path(__file__).parents[2] / "services" / "tuning" / "tests" / "plugins"
ENDED = frozenset({"FINISHED", "FAILED", "STOPPED"})
ARGUMENTS = "--exec-start PyTorch --model-dir model --model-main main.py --note 'of a trial'"
# A trial as programs are written: parameters in, results out. The best rate is 0.3.
PROGRAM = """
import json, os, sys, time
config = json.load(open("config.json"))
print("config", config, sys.argv[1:], os.environ["SUBID"])
if config.get("wait"):
    time.sleep(600)
if config.get("fails"):
    sys.exit("this trial fails")
rate = config["rate"]
epochs = int(config.get("epochs", 2))
if "DLMESH_PARENT_RESULT_DIR" in os.environ:
    before = json.load(open(os.path.join(os.environ["DLMESH_PARENT_RESULT_DIR"], "val_dict_list.json")))
    assert len(before) == int(os.environ["DLMESH_PARENT_RESOURCE"]) < epochs, before
loss = (rate - 0.3) ** 2
rows = [{"step": step, "loss": str(loss + 0.1 / step), "accuracy": 1 - rate} for step in range(1, epochs + 1)]
with open(os.path.join(os.environ["RESULT_DIR"], "val_dict_list.json"), "w") as file:
    json.dump(rows, file)
"""
RATE = {"name": "rate", "type": "Range", "dataType": "DOUBLE", "minDbVal": 0.0, "maxDbVal": 1.0, "step": "0.001"}
WAIT = {"name": "wait", "type": "Fix", "dataType": "int", "fixedVal": 1}


def tar_of(files: Mapping[str, str], folder: str = "model/") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"{folder}{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return target.getvalue()


def search(name: str = "", *parameters: Mapping[str, Any], **algorithm: Any) -> dict[str, Any]:
    parts = {part: algorithm.pop(part) for part in ("experiments", "modelSpec") if part in algorithm}
    settings = {"algorithm": "Random", "objectiveMetric": "loss", "objective": "minimize", "maxJobNum": 3}
    data = {
        "modelSpec": {"sigName": "local", "args": ARGUMENTS},
        "algoDef": {**settings, **algorithm},
        **({} if "experiments" in parts else {"hyperParams": list(parameters or [RATE])}),
        **parts,
    }
    return {"hpoName": name, **data} if name else data


def start(client: Client, data: Mapping[str, Any] | str, program: str = PROGRAM) -> str:
    text = data if isinstance(data, str) else json.dumps(data)
    parts = {"file": ("m.modelDir.tar", tar_of({"main.py": program})), "data": (None, text, "text/plain")}
    found: str = client.request("POST", "/hypersearch", files=parts).json()
    return found


def ended(client: Client, name: str) -> dict[str, Any]:
    client.until(lambda: client.get(f"/hypersearch/{name}")["state"] in ENDED, seconds=240)
    found: dict[str, Any] = client.get(f"/hypersearch/{name}")
    return found


def refusal(client: Client, method: str, path: str, **options: Any) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        client.request(method, path, **options)
    return caught.value.status, caught.value.message


def values(experiment: Mapping[str, Any]) -> dict[str, str]:
    return {one["name"]: one["fixedVal"] for one in experiment["hyperParams"]}


def install(client: Client, data: Mapping[str, Any], file: bytes | None = None) -> str:
    parts: dict[str, Any] = {"data": (None, json.dumps(data))}
    if file is not None:
        parts["file"] = ("plugin.tar", file)
    found: str = client.request("POST", "/hypersearch/algorithm/install", files=parts).json()
    return found
