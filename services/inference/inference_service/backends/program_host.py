"""`python program_host.py SPEC LIFELINE`: runs a model's inference.py again and again, each time in a fork.

Copied into the model repository, so it imports nothing of ours that it cannot do without. SPEC is JSON:

    {"code", "work", "home", "bundle", "framework", "file_bytes"}

`code` is the program's folder, below `work`, the one folder that it may write; `home` is the platform's, empty where
there is none. Having imported what the program imports it says so with an empty line. Then it answers each line of JSON
with one:

    {"arguments", "input", "log", "seconds", "decode", "records"} -> {"code": int | null, "unreadable": {name: reason}}

`unreadable` are files of the folder `input` that are no pictures for a program; they were removed. With `decode`, which
takes time, pictures must be whole, and the program is run only when one was not. When `records` is not null they become
records of that form (`program_records`). `code` is the exit code, negative for
a signal, null when `seconds` were over. What the program prints is in the file `log`.

The process that runs programs is a child of one that guards it, which is not confined and runs nothing of the user's.
When nobody holds the other end of the pipe LIFELINE (a descriptor) any more, or the child has ended, all that was
started is killed, also what tried to get away; then the guard ends.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import program_records  # type: ignore[import-not-found]
from model_room import confine  # type: ignore[import-not-found]

PROGRAM = "inference.py"
# As dlmesh_sdk.served.pictures has it: decoded a picture takes a few bytes for each.
MAX_PIXELS = 48 * 1024 * 1024
MAX_REASON_CHARACTERS = 200
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


def main(spec: Mapping[str, Any], lifeline: int) -> None:
    """Guard a process that hosts the program."""
    # What outlives its parent comes to us.
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guard = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(lifeline)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == guard:
            host(spec)
        return
    # The host alone answers: its end is the end of what can be heard.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    ended = os.pidfd_open(pid)
    select.select([lifeline, ended], [], [])
    _end_all()


def _end_all() -> None:
    """Kill until there is nobody; whose parent was killed has become our child."""
    while True:
        for pid in _below(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _below(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    found, frontier = [], [pid]
    while frontier:
        threads = Path(f"/proc/{frontier.pop()}/task")
        with contextlib.suppress(OSError):
            for children in threads.glob("*/children"):
                with contextlib.suppress(OSError):
                    pids = [int(word) for word in children.read_text().split()]
                    found += pids
                    frontier += pids
    return found


def host(spec: Mapping[str, Any]) -> None:
    """Get ready, and run the program as often as asked."""
    # What a run leaves behind comes to us, to be ended.
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    answers = os.dup(1)
    # What is printed meanwhile is no answer.
    os.dup2(2, 1)
    confine(Path(spec["home"]) if spec["home"] else None, Path(spec["work"]), Path(spec["bundle"]))
    os.environ.update(environment(spec))
    for name in imported_modules(Path(spec["code"])):
        # What cannot be imported fails where the program imports it, in words of its own.
        with contextlib.suppress(BaseException):
            importlib.import_module(name)
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        # Libraries mean the end of this process, not that of each fork.
        finalizer.atexit = False
    # Objects that live now are never collected, so their pages stay shared with the forks.
    gc.collect()
    gc.freeze()
    os.write(answers, b"\n")
    for line in sys.stdin:
        os.write(answers, json.dumps(run(json.loads(line), spec, answers)).encode() + b"\n")


def environment(spec: Mapping[str, Any]) -> dict[str, str]:
    """What the program finds in its environment, as in a validation."""
    work, bundle = Path(spec["work"]), Path(spec["bundle"])
    temporary = work / "tmp"
    temporary.mkdir(exist_ok=True)
    found = {"TMPDIR": str(temporary), "MPLCONFIGDIR": str(temporary), "KERAS_HOME": str(temporary)}
    if (bundle / "parameters.json").is_file():
        found["DLMESH_PARAMETERS"] = str(bundle / "parameters.json")
    with contextlib.suppress(ImportError):
        from dlmesh_sdk.program_environment import program_environment

        found |= program_environment(work, work / "run" / "output", work / "run", spec["code"], spec["framework"])
    if spec["framework"] == "TensorFlow":
        with contextlib.suppress(ImportError):
            from workerkit import tensorflow_cluster

            tensorflow_cluster.prepare()
    return found


def imported_modules(code: Path) -> list[str]:
    """Names of what inference.py and the files of its folder that it imports import from elsewhere."""
    names: dict[str, None] = {}
    seen, left = set(), [code / PROGRAM]
    while left:
        file = left.pop()
        if file in seen:
            continue
        seen.add(file)
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue
        for name in _imports(tree):
            own = code.joinpath(*name.split("."))
            files = [each for each in (own.with_suffix(".py"), own / "__init__.py") if each.is_file()]
            left += files
            if not files and not (code / name.partition(".")[0]).is_dir():
                names[name] = None
    return list(names)


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def run(message: Mapping[str, Any], spec: Mapping[str, Any], answers: int) -> dict[str, Any]:
    """One run, and nothing of it is left."""
    others = set(_children())
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.close(answers)
        _be_the_program(message, spec, writer)
    os.close(writer)
    # Its end can be waited for with a limit, also when it has ended already.
    descriptor = os.pidfd_open(pid)
    try:
        is_over = bool(select.select([descriptor], [], [], message["seconds"])[0])
    finally:
        os.close(descriptor)
    if not is_over:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    _end_children(others)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    code = os.waitstatus_to_exitcode(status) if is_over else None
    return {"code": code, "unreadable": json.loads(told) if told else {}}


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()]


def _end_children(others: set[int]) -> None:
    while left := set(_children()) - others:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _be_the_program(message: Mapping[str, Any], spec: Mapping[str, Any], writer: int) -> NoReturn:
    code = 1
    try:
        host = os.getppid()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != host:
            os._exit(1)
        os.setsid()
        log = os.open(message["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for target in (1, 2):
            os.dup2(log, target)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, spec["file_bytes"])):
            resource.setrlimit(kind, (most, most))
        unreadable = remove_unreadable(Path(message["input"]), decode=message["decode"])
        os.write(writer, json.dumps(unreadable).encode())
        os.close(writer)
        if message["decode"] and not unreadable:
            os._exit(1)
        if any(Path(message["input"]).iterdir()):
            if message["records"]:
                program_records.to_records(Path(message["input"]), message["records"])
            os.chdir(spec["code"])
            sys.path.insert(0, spec["code"])
            sys.argv = [PROGRAM, *message["arguments"]]
            runpy.run_path(PROGRAM, run_name="__main__")
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        if not isinstance(exit_.code, int | None):
            print(exit_.code, file=sys.stderr)
    except BaseException as error:
        trace = error.__traceback__
        # From the program's own frames on: what called it tells its author nothing.
        while trace is not None and trace.tb_frame.f_code.co_filename != PROGRAM:
            trace = trace.tb_next
        traceback.print_exception(error.with_traceback(trace or error.__traceback__))
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code & 0xFF)


def remove_unreadable(folder: Path, *, decode: bool) -> dict[str, str]:
    """Remove pictures of `folder` that cannot be opened, or decoded, or are too large; why, by their names.

    Files without a suffix are neither picture nor text. Nothing is known of pictures where Pillow is not installed.
    """
    unreadable = {}
    for file in sorted(folder.iterdir()):
        reason = "it is neither a picture nor a text" if not file.suffix else ""
        if file.suffix not in ("", ".txt", ".json"):
            reason = _what_is_wrong(file, decode=decode)
        if reason:
            unreadable[file.name] = reason[:MAX_REASON_CHARACTERS]
            file.unlink()
    return unreadable


def _what_is_wrong(file: Path, *, decode: bool) -> str:
    try:
        from PIL import Image
    except ImportError:
        return ""
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"it has {image.width}x{image.height} pixels; allowed: {MAX_PIXELS} pixels"
            if decode:
                image.load()
    except Exception as error:
        return f"it cannot be read as a picture: {type(error).__name__}: {str(error).replace(str(file), 'it')}"
    return ""


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]))
