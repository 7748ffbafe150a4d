"""Running a file of a model directory in this process."""

from __future__ import annotations

import atexit
import os
import runpy
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn


def run_program(code: str | Path, file: str, arguments: Sequence[str]) -> None:
    """Run `file` of the folder `code` as the main program, in that folder, with `arguments`.

    FileNotFoundError when the model directory has no such file. SystemExit passes through unless its code is 0.
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
        # From the program's own frames on: what called it tells its author nothing.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != file:
            trace = trace.tb_next
        traceback.print_exception(error.with_traceback(trace))
        sys.exit(1)


def end_process() -> NoReturn:
    """End with code 0 once everything is written, without tearing the interpreter down.

    A thread of a native library that wants the interpreter while it is torn down is unwound by force, which C++ answers
    with an abort: a training that had finished would count as failed. The warm pool ends its ranks likewise.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)
