"""`python die_with_parent.py PARENT_PID PROGRAM [ARGUMENT ...]`: become PROGRAM, killed when the parent ends.

A program of its own because the service has threads: code between fork and exec would not be safe in it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
