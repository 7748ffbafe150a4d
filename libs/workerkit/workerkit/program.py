"""Running a file of a model directory in this process."""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_PASSING = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT}
)


def run_program(code: str | Path, file: str, arguments: Sequence[str]) -> None:
    """Run `file` of the folder `code` as the main program, in that folder, with `arguments`.

    FileNotFoundError when the model directory has no such file. SystemExit passes through unless its code is 0; it is
    EX_DATAERR, which is not tried again, for what the program cannot use, such as data of another kind than it needs.
    """
    folder = Path(code)
    if not (folder / file).is_file():
        raise FileNotFoundError(f"the model directory has no {file}")
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = [file, *arguments]
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit as exit_:
        if exit_.code:
            raise
    except Exception as error:
        end_for_wrong_data(error)
        # From the program's own frames on: what called it tells its author nothing.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != file:
            trace = trace.tb_next
        traceback.print_exception(error.with_traceback(trace))
        sys.exit(1)


def end_for_wrong_data(error: Exception) -> None:
    """SystemExit with EX_DATAERR and the one line that `error` is when it is the sdk's UnusableError, else nothing.

    Nothing, too, when the error came of a disk or a machine in trouble: the next attempt may find it well.
    """
    # What raised it has imported it.
    module = sys.modules.get("dlmesh_sdk.wrong_data")
    if module is not None and isinstance(error, module.UnusableError) and not _may_pass(error):
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(os.EX_DATAERR) from error


def _may_pass(error: BaseException) -> bool:
    while error.__context__ is not None:
        error = error.__context__
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
    return False


@dataclass(frozen=True)
class Apart:
    """Work in a process of its own."""

    pid: int

    def wait(self) -> int:
        """Its exit code once it has ended, negative for the signal that ended it."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def start_apart(work: Callable[[], None]) -> Apart:
    """Do `work` in a child process, which ends with this one. To be called before this process has threads."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return Apart(pid)
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            # It had ended before the line above.
            os._exit(1)
        try:
            work()
            code = 0
        except SystemExit as exit_:
            code = _exit_code(exit_)
        except BaseException:
            traceback.print_exc()
    finally:
        # Nothing may get out of here: above are the parent's frames.
        end_process(code)


def end_process(code: int = 0) -> NoReturn:
    """End with `code` once everything is written, without tearing the interpreter down.

    A thread of a native library that wants the interpreter while it is torn down is unwound by force, which C++ answers
    with an abort: a training that had finished would count as failed. The warm pool ends its ranks likewise.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


def _exit_code(exit_: SystemExit) -> int:
    """What the interpreter makes of it: no code is 0, a text is printed and 1."""
    if exit_.code is None or isinstance(exit_.code, int):
        return (exit_.code or 0) & 0xFF
    print(exit_.code, file=sys.stderr)
    return 1
