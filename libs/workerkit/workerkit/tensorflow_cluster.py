"""How the ranks of a TensorFlow program find each other, and what is said before TensorFlow is imported."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

JOIN_SECONDS = 600.0
# How long workers may go on after the first one has ended before they count as mere servers.
GRACE_SECONDS = 10.0
_WAIT_SECONDS = 0.2


def prepare() -> None:
    """What has to be said before TensorFlow is imported; the user's own settings stay."""
    settings = {
        "KERAS_BACKEND": "tensorflow",
        # Ranks may share a GPU.
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "TF_CPP_MIN_LOG_LEVEL": "1",
    }
    if (neighbours := int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) > 1:
        settings["TF_NUM_INTRAOP_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // neighbours))
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def roles(hosts: list[str], rank: int, *, servers: int) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The cluster and the task of `rank`, as TF_CONFIG says them, for ranks at `hosts` (address:port).

    Without parameter servers all are workers. Else the first is the chief and the last `servers` are the servers.
    """
    if not servers:
        return {"worker": hosts}, {"type": "worker", "index": rank}
    first_server = len(hosts) - servers
    cluster = {"chief": hosts[:1], "worker": hosts[1:first_server], "ps": hosts[first_server:]}
    if rank == 0:
        task = {"type": "chief", "index": 0}
    elif rank >= first_server:
        task = {"type": "ps", "index": rank - first_server}
    else:
        task = {"type": "worker", "index": rank - 1}
    return {name: members for name, members in cluster.items() if members}, task


def server_arguments(hosts: list[str], rank: int, servers: int) -> list[str]:
    """What programs for parameter servers are given beside TF_CONFIG; the chief is worker 0 there."""
    first_server = len(hosts) - servers
    job, number = ("ps", rank - first_server) if rank >= first_server else ("worker", rank)
    return [
        *("--ps_hosts", ",".join(hosts[first_server:])),
        *("--worker_hosts", ",".join(hosts[:first_server])),
        *("--job_name", job),
        *("--task_id", str(number)),
    ]


def end_with_the_chief(folder: Path, rank: int, ranks: int, servers: int) -> None:
    """A server never ends by itself: end this rank, from a thread, when the workers have, or soon after the chief."""
    if rank:
        threading.Thread(target=_wait_for_the_chief, args=(folder, rank, ranks, servers), daemon=True).start()


def has_ended(folder: Path, rank: int) -> None:
    """The program of `rank` has ended well, which servers wait for."""
    _ended(folder, rank).touch()


def meet(rank: int, ranks: int) -> tuple[list[str], socket.socket]:
    """Every rank's `address:port` for TensorFlow, agreed upon through the first rank at MASTER_ADDR:MASTER_PORT.

    The socket keeps this rank's port from being given to others: TensorFlow, told to share ports, listens beside it.
    RuntimeError when the ranks have not met within ten minutes.
    """
    os.environ["TF_GRPC_REUSE_PORT"] = "1"
    master = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    try:
        if rank == 0:
            with socket.create_server(master) as server:
                server.settimeout(JOIN_SECONDS)
                reserved = _reserve(server.getsockname()[0])
                hosts = {0: _name(reserved)}
                peers = []
                while len(hosts) < ranks:
                    peer, _ = server.accept()
                    peer.settimeout(JOIN_SECONDS)
                    number, host = json.loads(peer.makefile("r").readline())
                    hosts[int(number)] = host
                    peers.append(peer)
                for peer in peers:
                    with peer:
                        peer.sendall(json.dumps([hosts[number] for number in range(ranks)]).encode() + b"\n")
            return [hosts[number] for number in range(ranks)], reserved
        with _connect(master) as peer:
            reserved = _reserve(peer.getsockname()[0])
            peer.sendall(json.dumps([rank, _name(reserved)]).encode() + b"\n")
            return json.loads(peer.makefile("r").readline()), reserved
    except (OSError, ValueError) as error:
        raise RuntimeError(f"rank {rank} did not meet the others at {master[0]}:{master[1]}: {error}") from error


def _connect(address: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            return socket.create_connection(address, timeout=JOIN_SECONDS)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_WAIT_SECONDS)


def _reserve(address: str) -> socket.socket:
    reserved = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind((address, 0))
    return reserved


def _name(reserved: socket.socket) -> str:
    address, port = reserved.getsockname()[:2]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _ended(folder: Path, rank: int) -> Path:
    return folder / f"tensorflow.ended-{os.environ.get('DLMESH_JOB_ATTEMPT', '1')}-{rank}"


def _wait_for_the_chief(folder: Path, rank: int, ranks: int, servers: int) -> None:
    first_server = ranks - servers
    others = [_ended(folder, other) for other in range(first_server) if other != rank]
    while not _ended(folder, 0).exists():
        time.sleep(_WAIT_SECONDS)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and not (rank >= first_server and all(file.exists() for file in others)):
        time.sleep(_WAIT_SECONDS)
    sys.stdout.flush()
    os._exit(0)
