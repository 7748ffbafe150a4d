"""Commands that replace the model's program, and weights that are fetched before it."""

from __future__ import annotations

import functools
import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from training_service.domain.specs import TrainingSpec
from training_service.frameworks.registry import framework_named
from training_service.worker.initial_weights import _name_of
from workerkit.command import is_launcher

REPOSITORY = Path(__file__).parents[3]
WRITE_WEIGHTS = (
    "import os, pathlib, sys;"
    "print(sys.argv[1:], os.environ.get('RANK'));"
    "pathlib.Path(os.environ['DLMESH_TRAIN_DIR'], 'model_epoch_1.pth').write_text('w')"
)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    return tmp_path / "code"


def start(tmp_path: Path, *, environment: dict[str, str] | None = None, **spec: Any) -> subprocess.Popen[str]:
    file = tmp_path / "spec.json"
    fields = {"code": str(tmp_path / "code"), "train_dir": str(tmp_path / "run" / "checkpoints"), "weights": ""}
    (tmp_path / "run").mkdir(exist_ok=True)
    TrainingSpec(**{**fields, "data": {"train": "/d/train"}, **spec}).write(file)
    packages = ["libs/sdk", "libs/workerkit", "libs/servicekit", "libs/contracts", "services/training"]
    paths = os.pathsep.join(str(REPOSITORY / package) for package in packages)
    return subprocess.Popen(
        [sys.executable, "-m", "training_service.worker.run_training", str(file)],
        env=os.environ | {"PYTHONPATH": paths, "DLMESH_JOB_DIR": str(tmp_path)} | (environment or {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(tmp_path: Path, **options: Any) -> tuple[int, str, str]:
    process = start(tmp_path, **options)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def test_a_command_replaces_the_program(tmp_path: Path, code: Path) -> None:
    (code / "other.py").write_text(WRITE_WEIGHTS.replace(";", "\n"))
    ended = run(tmp_path, command=["python", "other.py", "--out", "$DLMESH_TRAIN_DIR"], environment={"RANK": "1"})
    assert ended == (0, f"['--out', '{tmp_path}/run/checkpoints'] 1\n", "")


def test_a_launcher_runs_once_and_without_the_gangs_variables(tmp_path: Path, code: Path) -> None:
    launcher = code / "torchrun"
    launcher.write_text(f"#!{sys.executable}\n" + WRITE_WEIGHTS.replace(";", "\n"))
    launcher.chmod(0o755)
    other = start(tmp_path, command=[str(launcher)], environment={"RANK": "1", "WORLD_SIZE": "2"})
    # Its workers are all on one node, whatever a program of the original platform says of nodes.
    words = [str(launcher), "--nnodes=$WMLA_NWORKER", "--nproc-per-node=$WMLA_WORKER_NDEVICE", "--node-rank=$NODE_RANK"]
    first = start(tmp_path, command=words, environment={"RANK": "0", "WORLD_SIZE": "2"})
    assert first.communicate(timeout=60) == ("['--nnodes=1', '--nproc-per-node=2', '--node-rank=0'] None\n", "")
    assert other.communicate(timeout=60) == ("", "")
    assert (first.returncode, other.returncode) == (0, 0)


@pytest.mark.parametrize(
    ("words", "launches"),
    [
        (["torchrun", "--nproc-per-node=2", "main.py"], True),
        (["deepspeed", "main.py"], True),
        (["python", "-m", "torch.distributed.run", "main.py"], True),
        (["python", "main.py"], False),
        (["python", "-m", "mine"], False),
    ],
)
def test_what_starts_its_own_workers(words: list[str], launches: bool) -> None:
    assert is_launcher(words) is launches


def test_how_a_command_ends(tmp_path: Path, code: Path) -> None:
    assert run(tmp_path, command=["python", "-c", "raise SystemExit(7)"])[0] == 7
    assert run(tmp_path, command=["python", "-c", "import os; os.kill(os.getpid(), 9)"])[0] == 137
    status, _, errors = run(tmp_path, command=["no-such-program"])
    assert (status, errors) == (1, "cmd: 'no-such-program' cannot be run: No such file or directory\n")
    status, _, errors = run(tmp_path, command=["python", "-c", "pass"])
    assert (status, errors) == (
        1,
        "python -c pass ended with code 0 but wrote no weights into --train_dir ($DLMESH_TRAIN_DIR)\n",
    )


@pytest.mark.parametrize(
    "makes",
    ["symlink_to('/etc/passwd')", "symlink_to('none')", "touch()", "mkdir()", "symlink_to('model_epoch_1.pth')"],
)
def test_what_cannot_be_read_is_no_weights(tmp_path: Path, code: Path, makes: str) -> None:
    (code / "main.py").write_text(f"import pathlib, sys; pathlib.Path(sys.argv[2], 'model_epoch_1.pth').{makes}")
    assert run(tmp_path)[0] == 1


def test_a_link_beside_the_weights_is_good(tmp_path: Path, code: Path) -> None:
    write = "import pathlib, sys; d = pathlib.Path(sys.argv[2]); (d / 'model_epoch_1.pth').write_text('w')"
    (code / "main.py").write_text(f"{write}; (d / 'model_epoch_final.pth').symlink_to('model_epoch_1.pth')")
    assert run(tmp_path)[0] == 0
    assert framework_named("PyTorch").weight_file(tmp_path / "run" / "checkpoints") == "model_epoch_final.pth"


def test_a_stop_reaches_the_command(tmp_path: Path, code: Path) -> None:
    waits = "import signal, sys; signal.signal(15, lambda *_: sys.exit(143)); print('up', flush=True); signal.pause()"
    process = start(tmp_path, command=["python", "-c", waits])
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server of the files in `tmp_path/served`."""
    (tmp_path / "served").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_weights_are_fetched_first(tmp_path: Path, code: Path, address: str) -> None:
    (tmp_path / "served" / "my start.pth").write_bytes(b"w" * 3_000_000)
    (code / "main.py").write_text(
        "import sys, shutil; shutil.copy(sys.argv[sys.argv.index('--weights') + 1], sys.argv[2] + '/model_epoch_1.pth')"
    )
    assert run(tmp_path, weights_url=f"{address}/my%20start.pth?token=1") == (0, "", "")
    assert (tmp_path / "run" / "initial-weights" / "my start.pth").stat().st_size == 3_000_000
    assert (tmp_path / "run" / "checkpoints" / "model_epoch_1.pth").stat().st_size == 3_000_000


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/b.pth?x=/c.pt", "b.pth"),
        ("", "weights.pth"),
        ("/..", "weights.pth"),
        ("/a/%2e%2e", "weights.pth"),
        ("/%00.hidden%0a.pth", "_.hidden_.pth"),
        ("/" + "x" * 300 + ".pth", "x" * 56 + ".pth"),
    ],
)
def test_an_address_names_a_file_of_the_folder(path: str, name: str) -> None:
    assert _name_of(f"http://h{path}") == name


def test_weights_that_are_not_there_are_not_asked_for_again(tmp_path: Path, code: Path, address: str) -> None:
    (code / "main.py").write_text("raise AssertionError")
    status, _, errors = run(tmp_path, weights_url=f"{address}/none.pth")
    # 65 tells the queue that it would fail again.
    assert (status, errors) == (65, f"wtURL: {address}/none.pth answered 404 File not found\n")


def test_a_server_that_is_away_may_come_back(tmp_path: Path, code: Path) -> None:
    (code / "main.py").write_text("raise AssertionError")
    status, _, errors = run(tmp_path, weights_url="http://127.0.0.1:1/weights.pth")
    assert status == 1
    assert errors.startswith("wtURL: http://127.0.0.1:1/weights.pth cannot be fetched: ")


@pytest.mark.parametrize("code_of_answer", [408, 425, 429, 503])
def test_a_server_that_has_no_time_is_asked_again(tmp_path: Path, code: Path, code_of_answer: int) -> None:
    (code / "main.py").write_text("raise AssertionError")

    class Busy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(code_of_answer)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        status, _, errors = run(tmp_path, weights_url=f"http://127.0.0.1:{server.server_port}/w.pth")
        server.shutdown()
    assert (status, str(code_of_answer) in errors) == (1, True)


def test_passwords_are_not_printed_after_a_redirection_either(tmp_path: Path, code: Path) -> None:
    (code / "main.py").write_text("raise AssertionError")

    class Moved(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503 if self.path == "/there" else 302)
            self.send_header("Location", "/there")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Moved) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"HTTP://jo:s%41cret@127.0.0.1:{server.server_port}/w.pth"
        status, _, errors = run(tmp_path, weights_url=address)
        server.shutdown()
    assert (status, "cret" in errors, "503" in errors) == (1, False, True), errors


def test_passwords_of_addresses_are_not_printed(tmp_path: Path, code: Path, address: str) -> None:
    (code / "main.py").write_text("raise AssertionError")
    server = address.removeprefix("http://")
    _, output, errors = run(tmp_path, weights_url=f"http://jo:secret@{server}/none.pth?x=1")
    assert (output, errors) == ("", f"wtURL: http://jo:***@{server}/none.pth?x=1 answered 404 File not found\n")
