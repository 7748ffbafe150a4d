"""What whoever reaches Triton's port can make of it: programs in its processes are fenced, and loading takes a key."""

from __future__ import annotations

import base64
import json
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest
import requests
from inference_service.storage.repository import DiskRepository
from inference_service.triton.installation import Installation, Ports
from inference_service.triton.server import SHARED_MEMORY
from inference_service.usecases.ports import LoadRefusedError
from triton_fixtures import ServedHome, make_model, write_training
from workerkit.confinement.hiding import supported_abi

CONFIG = """\
backend: "python"
max_batch_size: 0
input [{ name: "IN" data_type: TYPE_FP32 dims: [ 1 ] }]
output [{ name: "OUT" data_type: TYPE_FP32 dims: [ 1 ] }]
instance_group [{ kind: KIND_CPU }]
"""
# Before anything of ours could give something up.
TRYING = """
import json, os
found = {}
for name, way in %r.items():
    try:
        found[name] = str(eval(way))
    except BaseException as error:
        found[name] = type(error).__name__
raise ValueError("<" + json.dumps(found) + ">")
"""


def write_model(home: Path, name: str, program: str) -> None:
    entry = home / "inference" / "repository" / name
    (entry / "1").mkdir(parents=True)
    (entry / "config.pbtxt").write_text(CONFIG)
    (entry / "1" / "model.py").write_text(program)


def load(triton: ServedHome, name: str, **parameters: str) -> requests.Response:
    url = json.loads(triton.address_file.read_text())["http"]
    return requests.post(f"{url}/v2/repository/models/{name}/load", json={"parameters": parameters}, timeout=300)


@pytest.mark.triton
@pytest.mark.skipif(not supported_abi(), reason="this kernel has no Landlock")
def test_a_program_of_a_stranger_reaches_nothing_in_tritons_processes(triton: ServedHome, tmp_path: Path) -> None:
    home = triton.home
    others = home / "inference" / "predictions" / "others"
    others.mkdir(parents=True, exist_ok=True)
    for file in (home / "secret", others / "picture"):
        file.write_text("hidden")
    ways = {
        "password": f"open('{home}/secret').read()",
        "upload": f"open('{others}/picture').read()",
        "repository": f"open('{home}/inference/repository/strange/1/model.py', 'a')",
        "new model": f"open('{home}/inference/repository/strange/2', 'w')",
        "machine": f"open('{tmp_path}/new', 'w')",
        "platform": f"open({str(Path(__file__))!r}, 'a')",
        "service": f"open('/proc/{os.getpid()}/environ').read()",
        "memory": f"open('/dev/shm/dlmesh_test_{os.getpid()}_new', 'w').write('fine')",
        "room": f"os.mkdir('{home}/inference/rooms/strange')",
    }
    try:
        write_model(home, "strange", TRYING % ways)
        words = load(triton, "strange").text.replace('\\"', '"')
        found = json.loads(words[words.index("<") + 1 : words.index(">")])
        assert {name: said for name, said in found.items() if said != "PermissionError"} == {
            "memory": "4",
            "room": "None",
        }
    finally:
        (SHARED_MEMORY / f"dlmesh_test_{os.getpid()}_new").unlink(missing_ok=True)


@pytest.mark.triton
@pytest.mark.skipif(not supported_abi(), reason="this kernel has no Landlock")
async def test_a_model_reaches_nothing_of_another(triton: ServedHome) -> None:
    home, name = triton.home, "curious"
    await triton.serve("watched")
    # The folders of running processes, as the service knows them: it must not take them for left.
    repository = DiskRepository(home)
    [room] = [folder for folder, model in (await repository.rooms()).items() if model == "watched"]
    (home / "inference" / "rooms" / room / "asked.png").write_text("hidden")
    weights = home / "inference" / "repository" / "watched" / "1" / "bundle" / "model_epoch_final.pth"
    own = home / "inference" / "repository" / name / "1" / "bundle" / "model_epoch_final.pth"
    ways = {
        "asked": f"open('{home}/inference/rooms/{room}/asked.png').read()",
        "answers": f"open('{home}/inference/rooms/{room}/asked.png', 'w')",
        "weights": f"open('{weights}', 'rb').read()",
        "own weights": f"len(open('{own}', 'rb').read()) > 0",
        "own folder": "open(os.path.join(os.environ['TMPDIR'], 'new'), 'w').write('fine')",
    }
    code, checkpoints = write_training(home / "trainings" / name)
    (code / "model.py").write_text(f"def build_model(*_, **__):\n{textwrap.indent(TRYING % ways, '    ')}")
    await repository.publish(make_model(name, code, checkpoints))
    client = triton.client()
    with pytest.raises(LoadRefusedError) as refusal:
        await client.load(name)
    await client.close()
    words = str(refusal.value)
    found = json.loads(words[words.index("<{") + 1 : words.index("}>") + 1])
    assert {name: said for name, said in found.items() if said != "PermissionError"} == {
        "own weights": "True",
        "own folder": "4",
    }


@pytest.mark.triton
@pytest.mark.skipif(not supported_abi(), reason="this kernel has no Landlock")
def test_a_program_that_comes_with_the_request_is_not_even_run(triton: ServedHome) -> None:
    mark = triton.home / "inference" / "rooms" / "was-run"
    mark.parent.mkdir(exist_ok=True)
    program = f"open('{mark}', 'w')\nclass TritonPythonModel:\n    pass\n"
    config: dict[str, Any] = {
        "backend": "python",
        "max_batch_size": 0,
        "input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": [1]}],
        "output": [{"name": "OUT", "data_type": "TYPE_FP32", "dims": [1]}],
    }
    files = {"file:1/model.py": base64.b64encode(program.encode()).decode()}
    assert not load(triton, "brought", config=json.dumps(config), **files).ok
    assert not mark.exists()


def test_of_the_services_environment_models_get_what_is_no_secret() -> None:
    installation = Installation(Path("/triton"))
    secrets = {"DLMESH_DATABASE_URL": "s", "DLMESH_ADMIN_PASSWORD": "s", "PGPASSWORD": "s", "LD_PRELOAD": "s"}
    needed = {"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "all", "TZ": "UTC", "HOME": "/home/ann"}
    found = installation.environment({**secrets, **needed, "PATH": "/bin"})
    assert found.items() >= needed.items()
    assert found.keys() - needed.keys() == {"PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"}


def test_a_key_restricts_all_but_inference() -> None:
    command = Installation(Path("/triton")).command(Path("/repository"), Ports(1, 2, 3), "prefix", "k")
    for option in ("http-restricted-api", "grpc-restricted-protocol"):
        assert f"--{option}=model-repository,shared-memory,trace,logging:dlmesh-key=k" in command
