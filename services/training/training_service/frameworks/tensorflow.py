"""TensorFlow and Keras programs."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from training_service.domain.specs import TrainingSpec, ValidationSpec
from training_service.frameworks.base import Framework
from training_service.worker.program import run_program

# As the contract names them; the first is meant where the model names none.
STRATEGIES = ("MultiWorkerMirroredStrategy", "ParameterServerStrategy")
JOIN_SECONDS = 600.0
# How long workers may go on after the first one has ended before they count as mere servers.
GRACE_SECONDS = 10.0
_WAIT_SECONDS = 0.2


class TensorFlow(Framework):
    """Several ranks find each other by TF_CONFIG: all are workers (MultiWorkerMirroredStrategy), unless the model's
    distribute strategy is ParameterServerStrategy: then the first rank is the chief, the last one the parameter server,
    and programs are also given --ps_hosts, --worker_hosts, --job_name and --task_id (the chief is worker 0 there).
    """

    name = "TensorFlow"
    weights = (
        r"model_epoch_final\.(keras|weights\.h5|h5)",
        r"[^.].*\.keras",
        r"[^.].*\.weights\.h5",
        r"[^.].*\.h5",
        r"[^.].*\.index",
        r"saved_model(\.pb)?",
    )
    weight_folders = ("saved_model",)

    def train(self, spec: TrainingSpec) -> None:
        _prepare()
        rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        arguments = ["--train_dir", spec.train_dir, "--weights", spec.weights]
        # The ranks of an elastic program meet by other means.
        if ranks == 1 or spec.max_workers:
            run_program(spec.code, spec.program, arguments)
            return
        strategy = str(spec.parameters.get("distribute_strategy") or STRATEGIES[0])
        if strategy not in STRATEGIES:
            sys.exit(f"distributeStrategy: {strategy!r} is not known; known: {', '.join(STRATEGIES)}")
        has_server = strategy == "ParameterServerStrategy"
        hosts, _reserved = meet(rank, ranks)
        cluster, task = roles(hosts, rank, has_server=has_server)
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
        if not has_server:
            from dlmesh_sdk import keras_multi_worker

            keras_multi_worker.mend_fit()
            run_program(spec.code, spec.program, arguments)
            return
        job = "ps" if task["type"] == "ps" else "worker"
        arguments += ["--ps_hosts", hosts[-1], "--worker_hosts", ",".join(hosts[:-1])]
        arguments += ["--job_name", job, "--task_id", "0" if job == "ps" else str(rank)]
        folder = Path(os.environ.get("DLMESH_JOB_DIR") or Path(spec.train_dir).parent)
        if rank:
            threading.Thread(target=_end_with_the_chief, args=(folder, rank, ranks), daemon=True).start()
        run_program(spec.code, spec.program, arguments)
        _ended(folder, rank).touch()

    def infer(self, spec: ValidationSpec, output_file: str) -> None:
        _prepare()
        super().infer(spec, output_file)


def _prepare() -> None:
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


def roles(hosts: list[str], rank: int, *, has_server: bool) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The cluster and the task of `rank`, as TF_CONFIG says them, for ranks at `hosts` (address:port)."""
    if not has_server:
        return {"worker": hosts}, {"type": "worker", "index": rank}
    cluster = {"chief": hosts[:1], "worker": hosts[1:-1], "ps": hosts[-1:]}
    if rank == 0:
        task = {"type": "chief", "index": 0}
    elif rank == len(hosts) - 1:
        task = {"type": "ps", "index": 0}
    else:
        task = {"type": "worker", "index": rank - 1}
    return {name: members for name, members in cluster.items() if members}, task


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


def _end_with_the_chief(folder: Path, rank: int, ranks: int) -> None:
    """A server never ends by itself: end this rank when the others have, or soon after the chief."""
    others = [_ended(folder, other) for other in range(ranks - 1) if other != rank]
    while not _ended(folder, 0).exists():
        time.sleep(_WAIT_SECONDS)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and not (rank == ranks - 1 and all(file.exists() for file in others)):
        time.sleep(_WAIT_SECONDS)
    sys.stdout.flush()
    os._exit(0)
