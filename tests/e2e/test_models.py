"""Templates, models, their files and frameworks through Envoy."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from dlmesh_platform.client import API, ApiError, Client
from dlmesh_platform.launch import RunningPlatform

pytestmark = [pytest.mark.platform, pytest.mark.slow]

UPLOAD_MIB = 200
BOUNDARY = "frontier"
# Lists the frameworks of an interpreter that finds only what lies in the folders that it is told.
LISTING = """
import sys
sys.path[:0] = sys.argv[1:]
from models_service.usecases.frameworks import list_frameworks
print(*(framework.name for framework in list_frameworks()))
"""


@pytest.fixture
def template(platform: RunningPlatform, admin: Client) -> Iterator[str]:
    folder = platform.home / "data" / "kept-template"
    (folder / "net").mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text("print('train')\n")
    (folder / "net" / "ä b#%41.txt").write_text("odd name")
    admin.post("/modeltemplates", {"name": "kept", "path": "kept-template", "framework": "PyTorch"})
    yield "kept"
    admin.delete("/modeltemplates/kept")


@pytest.fixture
def model(admin: Client, template: str) -> Iterator[dict[str, Any]]:
    given = {"learningrate": 0.1, "solvertype": "SGD (Cf and PT)", "momentum": 0.9}
    body = {"name": "kept-m", "templatename": template, "sig": "local", "type": "Training", "hyperparameter": given}
    admin.post("/models", {**body, "accelerator": "Single", "batchsize": 8})
    yield admin.get("/models/kept-m")
    admin.delete("/models/kept-m")


def refusal(client: Client, method: str, path: str, **options: Any) -> tuple[int, str]:
    with pytest.raises(ApiError) as refused:
        client.request(method, path, **options)
    return refused.value.status, refused.value.message


def raw_get(platform: RunningPlatform, path: str) -> int:
    """The status of a GET whose path goes out as it is."""
    password = (platform.home / "admin_password").read_text().strip()
    connection = http.client.HTTPConnection(platform.url.removeprefix("http://"), timeout=10)
    token = base64.b64encode(f"Admin:{password}".encode()).decode()
    connection.request("GET", API + path, headers={"Authorization": f"Basic {token}"})
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_template_is_listed_read_and_kept_while_a_model_needs_it(
    platform: RunningPlatform, admin: Client, model: dict[str, Any]
) -> None:
    for framework, found in (("PyTorch", True), ("pytorch", True), ("Caffe", False)):
        names = [each["name"] for each in admin.get("/modeltemplates", framework=framework)]
        assert ("kept" in names) == found
    assert refusal(admin, "GET", "/modeltemplates?framework=mxnet") == (
        400,
        "framework: 'mxnet' is not valid; allowed: one of Caffe, TensorFlow, PyTorch",
    )
    detail = admin.get("/modeltemplates/kept")
    assert (detail["path"], detail["tfmainContent"]) == (
        str(platform.home / "data" / "kept-template"),
        "print('train')\n",
    )
    assert admin.get("/modeltemplates/kept/files") == "kept/main.py\nkept/net/ä b#%41.txt"
    assert admin.get("/modeltemplates/files/kept%2Fnet%2F%C3%A4%20b%23%2541.txt") == "odd name"
    assert refusal(admin, "DELETE", "/modeltemplates/kept") == (
        409,
        "model template 'kept' is in use by model 'kept-m'",
    )
    assert refusal(admin, "DELETE", "/modeltemplates/caffe-lenet")[0] == 403


def test_a_models_files_are_written_and_read_back(admin: Client, model: dict[str, Any]) -> None:
    assert model["tfmainpath"] == f"{model['path']}/main.py"
    assert model["hyperparameter"] == {"learningrate": 0.1, "solvertype": "SGD", "momentum": 0.9}
    admin.put("/models/kept-m/files", {"tmpfilePath": "kept-m/new/x.py", "tmpfileContent": "x = 1\n"})
    assert "kept-m/new/x.py" in admin.get("/models/kept-m/files").split("\n")
    assert admin.get("/models/files/kept-m%2Fnew%2Fx.py") == "x = 1\n"
    admin.put(
        "/models/kept-m", {"tfmainContent": "pass\n", "type": "inference", "hyperparameter": {"solvertype": "Adam"}}
    )
    changed = admin.get("/models/kept-m")
    assert (changed["tfmainContent"], changed["type"]) == ("pass\n", "Inference")
    assert changed["hyperparameter"] == {"learningrate": 0.1, "solvertype": "Adam", "momentum": 0.9}
    # What was read may be sent back whole.
    admin.put("/models/kept-m", changed)
    assert admin.get("/models/kept-m") == changed


@pytest.mark.parametrize(
    "path",
    ["../../secret", "/etc/passwd", "a\0b", "x" * 300, "a/" * 2500, "", ".", "main.py/x", "new/", "a\nb", "\x7f"],
)
def test_no_file_is_written_elsewhere(admin: Client, model: dict[str, Any], path: str) -> None:
    status, message = refusal(admin, "PUT", "/models/kept-m/files", json={"tmpfilePath": path, "tmpfileContent": "x"})
    assert (status, message.partition(":")[0]) == (400, "tmpfilePath")


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("..%2F..%2Fsecret", 400),
        ("%2Fetc%2Fpasswd", 400),
        ("%2e%2e%2f%2e%2e%2fsecret", 400),
        ("..%252F..%252Fsecret", 404),
        ("link", 400),
        ("link%2Fsecret", 400),
        ("%FF", 400),
        ("a%00b", 400),
        ("none", 404),
        ("x" * 300, 404),
    ],
)
@pytest.mark.parametrize("kind", ["models/files/kept-m", "modeltemplates/files/kept"])
def test_no_file_is_read_elsewhere(
    platform: RunningPlatform, model: dict[str, Any], kind: str, name: str, status: int
) -> None:
    own = Path(model["path"])
    for folder in (own, *(platform.home / "templates").iterdir()):
        if not (folder / "link").is_symlink():
            (folder / "link").symlink_to(platform.home)
    assert raw_get(platform, f"/{kind}%2F{name}") == status


def test_weights_are_uploaded_as_a_stream(platform: RunningPlatform, admin: Client, model: dict[str, Any]) -> None:
    def body() -> Iterator[bytes]:
        yield f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="big.pth"\r\n\r\n'.encode()
        yield from (bytes(1 << 20) for _ in range(UPLOAD_MIB))
        yield f"\r\n--{BOUNDARY}--\r\n".encode()

    processes = [psutil.Process(platform.pids()[name]) for name in ("envoy", "models")]
    before = [process.memory_info().rss for process in processes]
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    assert admin.request("POST", "/models/weightfile", data=body(), headers=headers).status_code == 201
    grown = [(process.memory_info().rss - old) >> 20 for process, old in zip(processes, before, strict=True)]
    assert max(grown) < UPLOAD_MIB / 2, "MiB"
    kept = platform.home / "weights" / "Admin" / "big.pth"
    assert kept.stat().st_size == UPLOAD_MIB << 20
    assert refusal(admin, "POST", "/models/weightfile", data=b"".join(body()), headers=headers)[0] == 409
    admin.put("/models/kept-m", {"wfinit": "big.pth"})
    assert admin.get("/models/kept-m")["wfinit"] == str(kept)
    assert refusal(admin, "PUT", "/models/kept-m", json={"wtfolder": "big.pth"})[0] == 400
    kept.unlink()


def test_frameworks_are_those_that_are_installed(admin: Client) -> None:
    details = admin.get("/frameworks")
    assert admin.get("/frameworks/all") == [each["name"] for each in details]
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    assert {each["backend"] for each in details} == {"PyTorch", "Caffe", *(["TensorFlow"] if has_tensorflow else [])}
    for backend in ("PyTorch", "pytorch", "TensorFlow", "Caffe"):
        shown = [each["name"] for each in admin.get("/frameworks", backend=backend)]
        assert shown == [each["name"] for each in details if each["backend"].casefold() == backend.casefold()]
    assert refusal(admin, "GET", "/frameworks?backend=mxnet") == (
        400,
        "backend: 'mxnet' is not valid; allowed: one of Caffe, TensorFlow, PyTorch",
    )


@pytest.mark.parametrize("missing", ["tensorflow", "torch"])
def test_a_framework_that_is_not_installed_is_not_listed(tmp_path: Path, missing: str) -> None:
    """Everything of this environment but one package, in a folder of links."""
    for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if package.name != missing:
            (tmp_path / package.name).symlink_to(package)
    paths = [path for path in sys.path if path and Path(path).is_dir() and "site-packages" not in path]
    command = [sys.executable, "-I", "-S", "-c", LISTING, str(tmp_path), *paths]
    names = subprocess.check_output(command, text=True, env={"PATH": os.environ["PATH"]}).split()
    gone = {"tensorflow": {"TensorFlow", "edtTensorFlow"}, "torch": {"PyTorch", "edtPyTorch", "Caffe"}}
    assert not set(names) & gone[missing]
    assert names or importlib.util.find_spec("tensorflow") is None
