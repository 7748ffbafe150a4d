"""`python kernel_host.py SDK FOLDER FILE`: runs the kernel in FILE of FOLDER, where `kernel_guard.py` put this process.

SDK is the folder of the modules that kernels import. In a process that has them imported already `run` does the same.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from pathlib import Path


def run(sdk: str, folder: str, file: str) -> int:
    """Run it as the main program to its end; the exit code. Why it could not go on is said on its connection, too."""
    if sdk not in sys.path:
        sys.path.append(sdk)
    from dlmesh_sdk.kernel_connection import connection, words_of

    path = Path(folder) / file
    # Its own modules before ours, those beside it before those of the model.
    sys.path[:0] = dict.fromkeys((str(path.parent), folder))
    sys.argv = [str(path)]
    code, words = 0, ""
    line = connection()
    try:
        runpy.run_path(str(path), run_name="__main__")
        words = f"{file} came to its end without Kernel.run()"
    except SystemExit as exit_:
        if isinstance(exit_.code, str):
            print(exit_.code, file=sys.stderr)
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        words = f"{file} ended itself with exit code {code}"
    except BaseException as error:
        traceback.print_exc()
        code, words = 1, words_of(error, [folder])
    if line is not None:
        # Of no interest after a shutdown, when nobody listens any more.
        line.send({"failed": words})
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


def open_streams() -> None:
    """Line by line: what a kernel said last counts when it does not come to its end."""
    sys.stdout = os.fdopen(1, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def main() -> None:
    open_streams()
    code = run(*sys.argv[1:])
    # Whatever threads it started.
    os._exit(code)


if __name__ == "__main__":
    main()
