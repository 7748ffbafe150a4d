"""Workers of one training, forked from a process that has imported what takes long."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


def forked_gang(workers: int, work: Callable[[int], object]) -> list[int]:
    """Exit codes of `work(rank)` in a process for each worker; they find each other by the environment of a gang."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"WORLD_SIZE": str(workers), "LOCAL_WORLD_SIZE": str(workers), "NODE_RANK": "0"}
    gang = alone | ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if workers > 1 else {})
    pids = []
    for rank in range(workers):
        pid = os.fork()
        if not pid:
            os.environ |= gang | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            _end_after(work, rank)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _end_after(work: Callable[[int], object], rank: int) -> NoReturn:
    code = 1
    try:
        work(rank)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, int):
            code = end.code
        else:
            print(end, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        # Nothing may get out of here: above are the parent's frames.
        os._exit(code)
