"""`python -m dlmesh_platform.triton_setup`: NVIDIA's Triton server from its Python wheel, outside the environment.

The wheel wants numpy below 2, so it is unpacked without its dependencies. The server is moved into place only after it
has started and loaded a Python model, so a folder that exists is one that works.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from inference_service.triton.installation import HOST, STUB, Installation, Ports

ROOT = Path(__file__).resolve().parents[2]
WHEEL = "nvidia-pytriton==0.7.0"
MARKER = "installed.json"
START_SECONDS = 60.0
CHECK_CONFIG = """\
backend: "python"
max_batch_size: 0
input [{ name: "IN" data_type: TYPE_FP32 dims: [ 1 ] }]
output [{ name: "OUT" data_type: TYPE_FP32 dims: [ 1 ] }]
instance_group [{ kind: KIND_CPU }]
"""
CHECK_MODEL = """\
class TritonPythonModel:
    def execute(self, requests):
        return []
"""


class TritonSetupError(RuntimeError):
    """The server could not be installed or does not start; the text says why."""


def install_triton(target: Path) -> None:
    """Install the server into `target`; does nothing when it is there already."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    state = {"wheel": WHEEL, "python": python}
    with contextlib.suppress(OSError, ValueError):
        if json.loads((target / MARKER).read_text()) == state and Installation(target).exists:
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".triton-", dir=target.parent) as folder:
        draft = Path(folder) / "server"
        _unpack(draft)
        _arrange(draft, python)
        check(Installation(draft))
        (draft / MARKER).write_text(json.dumps(state))
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)


def check(installation: Installation) -> None:
    """TritonSetupError unless the server starts and its Python backend loads a model."""
    with tempfile.TemporaryDirectory(prefix="dlmesh-triton-") as folder:
        model = Path(folder) / "repository" / "check"
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(CHECK_CONFIG)
        (model / "1" / "model.py").write_text(CHECK_MODEL)
        ports = _free_ports()
        command = installation.command(model.parent, ports, f"dlmesh_check_{os.getpid()}_")
        log = Path(folder) / "log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                command, env=installation.environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            _load(server, f"http://{HOST}:{ports.http}/v2/repository/models/check/load")
        except TritonSetupError as error:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise TritonSetupError(f"{error}; it printed:\n{tail}") from error
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _unpack(target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--target", str(target), WHEEL]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise TritonSetupError(f"pip cannot install {WHEEL} on {platform.platform()}: {done.stderr.strip()}")


def _arrange(target: Path, python: str) -> None:
    """The stub of this Python beside the backend's library; what is not needed goes."""
    server = target / "pytriton" / "tritonserver"
    stubs = server / "python_backend_stubs"
    stub = stubs / python / STUB
    if not stub.is_file():
        known = ", ".join(sorted(folder.name for folder in stubs.iterdir()))
        raise TritonSetupError(f"{WHEEL} has no stub for Python {python}; it has {known}")
    installed = server / "backends" / "python" / STUB
    shutil.copy2(stub, installed)
    # pip keeps no execute bits that the wheel did not record.
    for program in (installed, server / "bin" / "tritonserver"):
        program.chmod(0o755)
    shutil.rmtree(stubs)
    shutil.rmtree(target / "bin", ignore_errors=True)


def _load(server: subprocess.Popen[bytes], url: str) -> None:
    """Ask until the server answers that the model is loaded."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            opener.open(urllib.request.Request(url, data=b"{}", method="POST"), timeout=START_SECONDS).close()
            return
        except urllib.error.HTTPError as error:
            raise TritonSetupError(f"Triton cannot load a Python model: {error.read().decode()}") from error
        except OSError as error:
            if server.poll() is not None:
                raise TritonSetupError(f"Triton ended with code {server.returncode}") from error
            if time.monotonic() > deadline:
                raise TritonSetupError(f"Triton did not answer within {START_SECONDS:.0f} s") from error
        time.sleep(0.1)


def _free_ports() -> Ports:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind((HOST, 0))
        return Ports(*(each.getsockname()[1] for each in sockets))


def main() -> int:
    """Install into `.triton` beside the code; 1 when that fails."""
    try:
        install_triton(ROOT / ".triton")
    except TritonSetupError as error:
        print(f"triton: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
