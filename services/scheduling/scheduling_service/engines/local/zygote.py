"""The warm pool: a process that has torch and DeepSpeed imported and forks keepers and ranks that need not import them.

`python -m scheduling_service.engines.local.zygote SOCKET PARENT`: answers one line for each attempt directory it is
sent. It never touches CUDA or starts OpenMP threads, because neither survives a fork. What it forks outlives it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
import runpy
import signal
import socket
import struct
import sys
import traceback
import weakref
from pathlib import Path
from typing import Any

from scheduling_service.engines.local import keeper, places, processes, records

# DeepSpeed uses the last two when the first engine is made: 2.6 of the 5.7 seconds a cold start takes.
WARM_MODULES = (
    *("torch", "torch.distributed", "deepspeed", "torch._dynamo", "torch._inductor", "lmdb", "PIL.Image"),
    # What run_exec takes from us and the sdk: 17 ms of every start.
    *("scheduling_service.exec_frameworks.pytorch", "dlmesh_sdk.program_environment"),
    *("workerkit.command", "workerkit.program"),
)


def serve(address: Path, service: int) -> None:
    """Import, then fork on request until the parent, which has the pid `service`, ends."""
    # As the parent says, not as we see it: it may have been killed before we came to look.
    processes.die_with_parent(service)
    _import_everything()
    _forget_own_end()
    # Objects that live now are never collected, so their pages stay shared with what is forked.
    gc.collect()
    gc.freeze()
    # Nobody waits for keepers.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    draft = address.with_name(f"{address.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(draft))
    draft.chmod(0o600)
    listener.listen(64)
    # Under its name only when it answers: whoever finds the socket finds a warm pool.
    draft.replace(address)
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            # A program that could ask for a keeper could start one that hides nothing from it.
            if _peer(connection) != service:
                continue
            request = connection.makefile("r").readline().strip()
            if request:
                pid = _fork_keeper(Path(request), (listener, connection))
                connection.sendall(f"started {pid}\n".encode())


def _peer(connection: socket.socket) -> int:
    """Pid of the process at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def _import_everything() -> None:
    for module in WARM_MODULES:
        if module == "deepspeed":
            import torch

            if not torch.cuda.is_available():
                from dlmesh_sdk import deepspeed_on_cpu

                deepspeed_on_cpu.install()
        importlib.import_module(module)
    from dlmesh_sdk import fabric_zip

    fabric_zip.packed()


def _forget_own_end() -> None:
    """What libraries that are imported here want done at the end of the process they mean for this one, not for each
    fork of it: torch takes its operators apart one by one, which takes longer than a whole start."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False


def _fork_keeper(directory: Path, inherited: tuple[socket.socket, ...]) -> int:
    """The pid of a keeper, which has a session of its own, so it is not ended with the pool.

    A fork of so much is dear: one only.
    """
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in inherited:
            descriptor.close()
        log = os.open(records.folder(directory) / keeper.LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        keeper.keep(directory, _fork_rank)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _fork_rank(spec: dict[str, Any], rank: int, environment: dict[str, str], place: places.Places) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        keeper.prepare_rank(place, rank, parent)
        code = _run_program(spec, environment)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
    os._exit(code)


def _run_program(spec: dict[str, Any], environment: dict[str, str]) -> int:
    """Do what `python -m MODULE ...` or `python FILE ...` does, in this process; the exit code."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(spec["working_directory"])
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    _be_a_fresh_interpreter(environment)
    arguments = spec["command"][1:]
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path.insert(0, str(Path.cwd()))
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as exit_:
        return _exit_code(exit_.code)
    finally:
        # What a normal end would do: exit handlers and threads that are not daemons.
        import atexit
        import threading

        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    return 0


def _be_a_fresh_interpreter(environment: dict[str, str]) -> None:
    import numpy
    import torch

    random.seed()
    numpy.random.seed()
    torch.set_num_threads(max(1, int(environment.get("OMP_NUM_THREADS", "1"))))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for entry in reversed(environment.get("PYTHONPATH", "").split(os.pathsep)):
        if entry and entry not in sys.path:
            sys.path.insert(0, entry)


def _exit_code(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
