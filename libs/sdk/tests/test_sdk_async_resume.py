"""An ASYNC training that goes on: on the same net for all workers, and every end of an epoch is told once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path

import pytest
import torch
from dlmesh_sdk.fabric_async import NONE_LEFT, Desk, ParameterServer, RemoteLink

# What a worker draws is its own, and another thing in every attempt. An epoch is one batch of one of two workers.
PROGRAM = """
import json, os, signal, sys
import torch
from torch import nn
from callbacks import Callback
from fabric_model import FabricModel
from testkit.gangs import forked_gang

def say(what):
    # Whole, also when another worker says something.
    os.write(1, (json.dumps(what) + "\\n").encode())

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("drawn", torch.randn(3))
        self.layer = nn.Linear(3, 2)
    def forward(self, x):
        return self.layer(x * self.drawn)

class Data(torch.utils.data.Dataset):
    asked = 0
    def __init__(self, samples, stop_after=0):
        self.samples, self.stop_after = samples, stop_after
    def __len__(self):
        return self.samples
    def __getitem__(self, index):
        self.asked += 1
        if self.asked == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return torch.full((3,), float(index)), index % 2

class Watch(Callback):
    def on_epoch_end(self, epoch, save_model):
        say({"ended": epoch})

def work(attempt, rank, samples, batch, epochs, stop_after):
    torch.manual_seed(100 * attempt + rank)
    net = Net()
    try:
        FabricModel(net, lambda: (Data(samples, stop_after), Data(4)), nn.functional.cross_entropy,
                    torch.optim.SGD(net.parameters(), 0.01), user_callback=[Watch]).train(epochs, batch)
    finally:
        say({"attempt": attempt, "rank": rank, "drawn": net.drawn.tolist()})

workers, *told = map(int, sys.argv[1:])
samples, batch, epochs, stop_after = told
for attempt, stop in enumerate((stop_after, 0)):
    codes = forked_gang(workers, lambda rank: work(attempt, rank, samples, batch, epochs, stop))
    assert codes == [143 if stop else 0] * workers, codes
"""


def output(folder: Path, *told: int) -> list[dict[str, object]]:
    """What the workers printed as JSON, in an attempt that is stopped and in one that goes on."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, told)],
        cwd=folder,
        env=os.environ
        | {
            "DLMESH_TRAIN_DIR": str(folder / "out"),
            "DLMESH_SYNC_MODE": "ASYNC",
            "DLMESH_MAX_WORKERS": str(told[0]),
            "OMP_NUM_THREADS": "1",
        },
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_all_workers_go_on_with_the_net_of_the_first_attempt(tmp_path: Path) -> None:
    drawn = [line["drawn"] for line in output(tmp_path, 2, 40, 8, 6, 60) if "drawn" in line]
    assert len(drawn) == 4
    assert drawn == [drawn[0]] * 4


@pytest.mark.slow
def test_the_end_of_an_epoch_that_a_stop_met_is_told_afterwards(tmp_path: Path) -> None:
    # The stop comes while the batch is read that is the whole third epoch.
    ended = [line["ended"] for line in output(tmp_path, 1, 4, 4, 6, 10) if "ended" in line]
    assert ended == list(range(6))


@pytest.fixture(name="server")
def a_server() -> ParameterServer:
    weight = torch.zeros(1, requires_grad=True)
    return ParameterServer([weight], torch.optim.SGD([weight], 0.1), total=0)


@pytest.fixture(name="desk")
def a_desk(server: ParameterServer) -> Iterator[Desk]:
    """Of one worker."""
    desk = Desk(server, 1, "127.0.0.1", b"right")
    yield desk
    desk.close()


def test_what_is_no_worker_is_let_go(desk: Desk) -> None:
    with socket.create_connection(("127.0.0.1", desk.port)):
        _let_go(desk)


def _let_go(desk: Desk) -> None:
    with socket.create_connection(("127.0.0.1", desk.port)):
        pass
    with socket.create_connection(("127.0.0.1", desk.port)) as probe:
        probe.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with suppress(ConnectionError):
            while probe.recv(100):
                pass
    with pytest.raises(AuthenticationError):
        Client(("127.0.0.1", desk.port), authkey=b"wrong")
    answers: list[int] = []

    def ask() -> None:
        link = RemoteLink("127.0.0.1", desk.port, b"right")
        answers.append(link.exchange(NONE_LEFT, 0, torch.zeros(0), 0.0, 0.0, stop=False)[0])

    worker = threading.Thread(target=ask, daemon=True)
    worker.start()
    worker.join(10)
    assert answers == [NONE_LEFT]
    deadline = time.monotonic() + 10
    while not desk.is_empty():
        assert time.monotonic() < deadline
        time.sleep(0.01)
