"""Kernels, hosted by a test that speaks the platform's side."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dlmesh_sdk
import pytest
from dlmesh_sdk.kernel_connection import HEADER_BYTES

SDK = str(Path(dlmesh_sdk.__file__).parent.parent)
KERNEL = """
import redhareapiversion
from redhareapi import Kernel

class Echo(Kernel):
    def on_kernel_start(self, kernel_context):
        Kernel.log_info("starts", kernel_context.get_id(), kernel_context.get_instance_id())
        Kernel.log("plain")
        Kernel.log_debug("one")
        Kernel.log_warn("two")
        Kernel.log_error("three")
        self.name = kernel_context.get_model_description()

    def on_task_invoke(self, task_context):
        task = task_context
        while task is not None:
            facts = [task.get_id(), task.get_uuid(), task.get_session_id(), task.get_job_id(), task.get_input_data()]
            task.set_output_data_extend("kept")
            if task.get_input_data_extend() == "at once":
                task.set_output_data("|".join(facts))
                task.report_ready()
            elif task.get_input_data_extend() == "raise":
                raise KeyError("gone")
            elif task.get_input_data_extend() != "nothing":
                task.set_output_data(self.name)
            assert task.next() is None or task.next().prev() is task
            task = task.next()

    def on_kernel_shutdown(self):
        Kernel.log_info("ends")

Echo().run()
"""
START = {"start": {"kernel": "k-1", "instance": "uid", "description": {"name": "echo"}, "output_bytes": 100}}


class Host:
    """The platform's side of one kernel."""

    def __init__(self, program: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {**os.environ, "PYTHONPATH": SDK, "DLMESH_KERNEL_SOCKET": str(theirs.fileno())}
            self.process = subprocess.Popen(
                [sys.executable, str(program)],
                env=environment,
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )
        ours.settimeout(120)
        self._socket, self._file = ours, ours.makefile("rb")
        self._keys = 0

    def send(self, message: dict[str, Any], inputs: str = "") -> None:
        text = json.dumps(message).encode()
        self._socket.sendall(len(text).to_bytes(4, "big") + text + inputs.encode())

    def receive(self) -> Any:
        length = int.from_bytes(self._file.read(4), "big")
        if not length:
            return None
        assert length <= HEADER_BYTES
        message = json.loads(self._file.read(length))
        for answer in message.get("answers", ()):
            if "bytes" in answer:
                answer["output"] = self._file.read(answer.pop("bytes")).decode()
        return message

    def tasks(self, *extensions: str) -> None:
        tasks, inputs = [], ""
        for extension in extensions:
            self._keys += 1
            names = {name: f"{name}{self._keys}" for name in ("id", "uuid", "session", "job")}
            given = f"inpüt{self._keys}"
            tasks.append({"key": self._keys, "extension": extension, "bytes": len(given.encode()), **names})
            inputs += given
        self.send({"tasks": tasks}, inputs)

    def close(self) -> str:
        self._file.close()
        self._socket.close()
        return self.process.communicate(timeout=120)[1]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    (tmp_path / "kernel.py").write_text(KERNEL)
    host = Host(tmp_path / "kernel.py")
    host.send(START)
    assert host.receive() == {"ready": True}
    yield host
    if host.process.returncode is None:
        host.close()


def test_a_batch_is_answered_as_a_whole(host: Host) -> None:
    host.tasks("", "", "")
    output = '{"name": "echo"}'
    answers = [{"key": key, "output": output} for key in (1, 2, 3)]
    assert host.receive() == {"answers": answers, "done": True}


def test_what_is_reported_ready_goes_before_the_rest(host: Host) -> None:
    host.tasks("", "at once", "")
    assert host.receive() == {"answers": [{"key": 2, "output": "id2|uuid2|session2|job2|inpüt2"}]}
    assert [answer["key"] for answer in host.receive()["answers"]] == [1, 3]


def test_what_has_no_output_says_so(host: Host) -> None:
    host.tasks("", "nothing", "raise", "")
    answers = host.receive()["answers"]
    assert "output" in answers[0]
    # The kernel's own words are for all that it left unanswered.
    assert [answer["error"].split(" (")[0] for answer in answers[1:]] == ["KeyError: 'gone'"] * 3
    assert answers[2]["error"].endswith("in on_task_invoke)")
    host.tasks("nothing")
    assert host.receive() == {"answers": [{"key": 5, "error": "the kernel set no output"}], "done": True}


def test_it_ends_when_it_is_told_to_and_when_nobody_is_there(host: Host, tmp_path: Path) -> None:
    host.send({"shutdown": True})
    assert host.receive() is None
    lines = host.close().splitlines()
    assert host.process.returncode == 0
    assert [line[20:] for line in lines] == [
        *("INFO starts k-1 uid", "plain", "DEBUG one", "WARN two", "ERROR three", "INFO ends"),
    ]
    other = Host(tmp_path / "kernel.py")
    other.send(START)
    assert other.receive() == {"ready": True}
    assert other.close().endswith("INFO ends\n")
    assert other.process.returncode == 0


def test_many_errors_are_many_frames(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(KERNEL.replace('KeyError("gone")', 'KeyError("ü" * 5000)'))
    host = Host(tmp_path / "kernel.py")
    host.send(START)
    assert host.receive() == {"ready": True}
    host.tasks(*["raise"] * 20)
    found: list[int] = []
    while not (message := host.receive()).get("done"):
        found += [answer["key"] for answer in message["answers"]]
    assert 0 < len(found) < 20
    assert [*found, *(answer["key"] for answer in message["answers"])] == list(range(1, 21))
    host.close()


def test_large_outputs_do_not_wait_for_each_other(tmp_path: Path) -> None:
    program = KERNEL.replace("self.name = ", "self.name = 'x' * 700_000 + ")
    (tmp_path / "kernel.py").write_text(program)
    host = Host(tmp_path / "kernel.py")
    host.send({"start": {**START["start"], "output_bytes": 1_000_000}})
    assert host.receive() == {"ready": True}
    host.tasks("", "", "")
    for key in (1, 2, 3):
        assert [answer["key"] for answer in host.receive()["answers"]] == [key]
    host.close()


def test_without_a_platform_it_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(KERNEL)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DLMESH")}
    environment["PYTHONPATH"] = SDK
    done = subprocess.run(
        [sys.executable, str(tmp_path / "kernel.py")],
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "publish its folder" in done.stderr
    assert "Traceback" not in done.stderr
