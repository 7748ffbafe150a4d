"""Running the command that a user gave instead of the model's program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

# These start their own workers: one of them is enough, and the gang's variables would mislead them.
LAUNCHERS = ("torchrun", "deepspeed", "horovodrun", "mpirun", "accelerate")
GANG_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
_WAIT_SECONDS = 0.2


def run_command(command: Sequence[str], code: str | Path, *, named: str = "cmd") -> None:
    """Run `command` in the folder `code` on every rank, or by the first rank only if it starts its own workers.

    `$NAME` in its words is taken from the environment; `python` is this interpreter. SystemExit with its code unless
    that is 0. SIGTERM is passed on. `named` is what users know the command as.
    """
    launches = is_launcher(command)
    if launches:
        # The workers that it starts are all on one node.
        os.environ |= {"WMLA_NWORKER": "1", "WMLA_WORKER_NDEVICE": os.environ.get("WORLD_SIZE", "1"), "NODE_RANK": "0"}
    words = [os.path.expandvars(word) for word in command]
    environment = dict(os.environ)
    if launches:
        ended = Path(environment.get("DLMESH_JOB_DIR", code)) / "command.ended"
        if environment.get("RANK", "0") != "0":
            # It holds its slot for the workers that the launcher starts.
            while not ended.exists():
                time.sleep(_WAIT_SECONDS)
            return
        for name in GANG_VARIABLES:
            environment.pop(name, None)
        _run(words, code, environment, named)
        ended.touch()
    else:
        _run(words, code, environment, named)


def is_launcher(words: Sequence[str]) -> bool:
    """True for torchrun, deepspeed and their like, also as `python -m torch.distributed.run`."""
    is_module = Path(words[0]).name.startswith("python") and list(words[1:2]) == ["-m"]
    program = words[2] if is_module and len(words) > 2 else Path(words[0]).name
    return program in (*LAUNCHERS, "torch.distributed.run", "torch.distributed.launch", "deepspeed.launcher.runner")


def _run(words: Sequence[str], code: str | Path, environment: dict[str, str], named: str) -> None:
    # Installed commands such as torchrun lie beside the interpreter.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    if words[0] in ("python", "python3"):
        words = [sys.executable, *words[1:]]
    try:
        process = subprocess.Popen(words, cwd=code, env=environment)
    except OSError as error:
        sys.exit(f"{named}: {words[0]!r} cannot be run: {error.strerror}")

    def pass_on(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    if status := process.wait():
        # As a shell says it: 128 and the signal.
        sys.exit(status if status > 0 else 128 - status)
