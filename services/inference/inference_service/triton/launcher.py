"""`python launcher.py PARENT_PID HOME INSTALLATION CONFINEMENT PROGRAM [ARGUMENT ...]`: become Triton, fenced in.

PROGRAM is killed when the parent ends, and of the platform's HOME it and all that it starts can write the rooms of
models only, and read besides what programs share only the model repository and the INSTALLATION. CONFINEMENT is the
folder of that package's modules. A program of its own because the service has threads: code between fork and exec
would not be safe in it. Standard library only.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# When the machine has no memory left the kernel ends models before services, whose number is 0.
OOM_SCORE_ADJUSTMENT = "500"


def main() -> None:
    parent, home, installation, program = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[5:]
    sys.path.insert(0, sys.argv[4])
    import hiding  # type: ignore[import-not-found]

    rooms, repository = home / "inference" / "rooms", home / "inference" / "repository"
    # For what is imported before a model has a room of its own.
    temporary = rooms / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    for folder in (rooms, temporary):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(temporary)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE_ADJUSTMENT)
    # Whoever reaches Triton's port can have it run a Python program of their own: not only what a model's code does
    # must be fenced, also the processes that run it.
    hiding.hide(
        home,
        writable=[rooms],
        readable=[repository, installation],
        changes_nothing_else=True,
        shared=hiding.SHARED_FOLDERS,
        # The Python backend does not start without a folder there, for environments that we do not use, and aborts at
        # its end when it cannot remove it.
        emptied=[Path("/tmp")],
    )
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # What a model starts and lets go stays below Triton, where it is seen.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
