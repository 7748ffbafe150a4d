"""`python plugin_guard.py SPEC`: starts what runs an installed algorithm where it can do no harm, and ends all of it.

SPEC is JSON:

    {"parent", "command", "confinement", "home", "folder", "readable", "needed", "user",
     "memory_bytes", "file_bytes", "folder_bytes"}

Standard library only, with the modules of the folder `confinement`; our own interpreter. It starts `command` in
`folder`, as the operating system's `user` if there is one, who must be able to read `needed`. Of the platform's `home`
the command can write that folder only, and read besides what everybody shares only `readable`. Input, output and errors
are its own. When it or `parent` has ended, or its folder holds too much, all that it started is killed, also what tried
to get away, and the guard ends as the command did. What it has to say it writes where answers go, a line of JSON:

    {"cannot_start": text, "is_transient": bool} | {"ended": text}
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
NICENESS = 5
# When the machine has no memory left the kernel ends algorithms before services, whose number is 0.
OOM_SCORE_ADJUSTMENT = "500"
LOOK_SECONDS = 1.0
# A look at the folder takes at most this part of the time, however much is in it.
LOOK_SHARE = 0.02
_TRANSIENT = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ETXTBSY, errno.EINTR)
_AWAITED = {signal.SIGTERM, signal.SIGCHLD}


class RefusedError(Exception):
    """It cannot run here, however often it is tried."""


def start(spec: Mapping[str, Any]) -> int:
    """Start the command; its pid."""
    account = account_of(spec)
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        become_algorithm(spec, account, guard)
    except BaseException as error:
        say_cannot_start(error, spec)
    os._exit(127)


def account_of(spec: Mapping[str, Any]) -> Any:
    """The user of the operating system that it shall run as, to whom its folder is given; None: our own."""
    import accounts  # type: ignore[import-not-found]

    try:
        account = accounts.find_account(spec["user"])
        if account is None:
            return None
        folder = Path(spec["folder"])
        accounts.give_folder(folder, account)
        if closed := accounts.first_closed(account, [folder, *map(Path, spec["needed"])]):
            raise RefusedError(f"execution user {account.name!r} cannot read {closed}")
    except accounts.RefusedError as error:
        raise RefusedError(str(error)) from error
    return account


def become_algorithm(spec: Mapping[str, Any], account: Any, guard: int) -> None:
    """In the child: give up all that an algorithm must not have, and be it."""
    import hiding  # type: ignore[import-not-found]

    os.setsid()
    os.nice(NICENESS)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write(OOM_SCORE_ADJUSTMENT)
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        # Of its own, beside what libraries map.
        (resource.RLIMIT_DATA, spec["memory_bytes"]),
        (resource.RLIMIT_FSIZE, spec["file_bytes"]),
    ):
        resource.setrlimit(kind, (most, most))
    environment = dict(os.environ)
    if account is not None:
        account.become()
        environment |= {"USER": account.name, "LOGNAME": account.name}
    # To become another user undoes the tie.
    die_with(guard, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
    folder = Path(spec["folder"])
    hiding.hide(Path(spec["home"]), [folder], map(Path, spec["readable"]), changes_nothing_else=True)
    os.chdir(folder)
    os.execve(spec["command"][0], spec["command"], environment)


def say_cannot_start(error: BaseException, spec: Mapping[str, Any]) -> None:
    text = str(error)
    if isinstance(error, OSError):
        text = f"{error.filename or spec['command'][0]}: {os.strerror(error.errno) if error.errno else error}"
    say({"cannot_start": text, "is_transient": isinstance(error, OSError) and error.errno in _TRANSIENT})


def say(message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(message).encode() + b"\n")


def die_with(parent: int, number: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def guard_until_end(child: int, folder: Path, folder_bytes: int) -> tuple[int, str]:
    """Wait until the child has ended, or shall. The code that says how, and what else is to be said."""
    import sizes  # type: ignore[import-not-found]

    look_at = time.monotonic() + LOOK_SECONDS
    while True:
        received = signal.sigtimedwait(_AWAITED, max(0.01, look_at - time.monotonic()))
        if received is not None and received.si_signo == signal.SIGTERM:
            return 0, ""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 1, ""
            if pid == 0:
                break
            if pid == child:
                return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), ""
        if (began := time.monotonic()) < look_at:
            continue
        held = sizes.held_bytes([folder])
        took = time.monotonic() - began
        look_at = began + took + max(LOOK_SECONDS, took / LOOK_SHARE)
        if held > folder_bytes:
            found, allowed = sizes.describe_bytes(held), sizes.describe_bytes(folder_bytes)
            return 1, f"its folder held {found}, allowed are {allowed}"


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    spec = json.loads(sys.argv[1])
    sys.path.insert(0, spec["confinement"])
    die_with(spec["parent"], signal.SIGTERM)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    import descendants  # type: ignore[import-not-found]

    try:
        child = start(spec)
    except (OSError, RefusedError) as error:
        say_cannot_start(error, spec)
        os._exit(127)
    # Input and errors are the command's alone; whoever waits for its answers sees their end when we have ended.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 2):
        os.dup2(nothing, descriptor)
    code, text = guard_until_end(child, Path(spec["folder"]), spec["folder_bytes"])
    descendants.end_all()
    if text:
        say({"ended": text})
    os._exit(code)


if __name__ == "__main__":
    main()
