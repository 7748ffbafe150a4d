"""Starts a kernel where it can do no harm, watches what it takes, and ends all of it.

A guard is a process of its own with three descriptors: `control`, on which it reads one line of JSON,

    {"kernel", "command", "sdk", "folder", "file", "home", "work", "readable", "needed", "user", "umask", "environment",
     "cores", "memory_bytes", "file_bytes", "folder_bytes", "sees_gpus", "is_warm"}

and writes lines: {"pid", "guard"}, the processes, {"cannot_start", "is_transient"}, {"ended", "code"}; `data`, the
kernel's connection; and `output`, where it prints. It works in `work`, where links show it what is in `folder`, as the
operating system's `user` if there is one, who must be able to read `needed`. Of the platform's `home` it can write
`work` only, and read besides SHARED_FOLDERS only `readable`. When `control` is closed at the other end, or it
takes too much, it is killed with all that it started, also what tried to get away. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import stat
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Here, because what is confined could not read it.
import kernel_host  # type: ignore[import-not-found]

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# When the machine has no memory left the kernel ends these before services, whose number is 0.
OOM_SCORE_ADJUSTMENT = "500"
LOOK_SECONDS, FOLDER_LOOK_SECONDS = 1.0, 5.0
# A look takes at most this part of the time, however much there is to look at.
LOOK_SHARE = 0.02
# What it may allocate beyond its limit before it is an error: it is ended at the next look.
BURST = 1.25
# Of the home. What a model needs of others' work is published with it.
SHARED_FOLDERS = ("data",)
DESCRIPTOR = 3
DESCRIPTOR_VARIABLE = "DLMESH_KERNEL_SOCKET"
_TRANSIENT = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ETXTBSY, errno.EINTR)


class RefusedError(Exception):
    """It cannot run here, however often it is tried."""


def guard(control: int, data: int, output: int, confinement: Mapping[str, Any]) -> None:
    """Be the guard of one kernel until all of it has ended; `confinement` are the modules of that package by name."""
    line = socket.socket(fileno=control)
    try:
        spec = json.loads(line.makefile("rb").readline())
    except ValueError:
        # Given up before it was begun.
        return
    wakeup, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        child = start(spec, data, output, confinement, [control, wakeup, waker])
    except (OSError, RefusedError) as error:
        say(line, _refusal(error, spec))
        return
    os.close(data)
    os.close(output)
    say(line, {"pid": child, "guard": os.getpid()})
    code, text = watch(line, wakeup, child, spec, confinement)
    confinement["descendants"].end_all()
    say(line, {"ended": text, "code": code})


def start(spec: Mapping[str, Any], data: int, output: int, confinement: Mapping[str, Any], ours: list[int]) -> int:
    """Start the kernel; its pid. Of the descriptors none of `ours` is left to it."""
    work, folder = Path(spec["work"]), Path(spec["folder"])
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    for entry in folder.iterdir():
        with contextlib.suppress(FileExistsError):
            (work / entry.name).symlink_to(entry)
    account = _account(spec, confinement["accounts"])
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        for descriptor in ours:
            os.close(descriptor)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        _take_descriptors(data, output)
        _become_kernel(spec, account, parent, confinement["hiding"])
    except BaseException:
        traceback.print_exc()
    os._exit(127)


def _account(spec: Mapping[str, Any], accounts: Any) -> Any:
    """The user of the operating system that it shall run as, to whom its folder is given; None: our own."""
    try:
        account = accounts.find_account(spec["user"])
        if account is None:
            return None
        accounts.give_folder(Path(spec["work"]), account)
        if closed := accounts.first_closed(account, map(Path, [spec["work"], *spec["needed"]])):
            raise RefusedError(f"execution user {account.name!r} cannot read {closed}")
    except accounts.RefusedError as error:
        raise RefusedError(str(error)) from error
    return account


def _take_descriptors(data: int, output: int) -> None:
    # Above all that are replaced, whichever numbers they have now.
    data, output = (os.dup(os.dup(descriptor)) for descriptor in (data, output))
    kept = {0: os.open(os.devnull, os.O_RDWR), 1: output, 2: output, DESCRIPTOR: data}
    highest = max(100, *kept.values()) + 1
    copies = {number: os.dup2(descriptor, highest + number) for number, descriptor in kept.items()}
    for number, copy in copies.items():
        os.dup2(copy, number)
    os.closerange(DESCRIPTOR + 1, highest + DESCRIPTOR + 1)


def _become_kernel(spec: Mapping[str, Any], account: Any, parent: int, hiding: Any) -> None:
    """In the child: give up all that a kernel must not have, and be it."""
    work = Path(spec["work"])
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write(OOM_SCORE_ADJUSTMENT)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (spec["file_bytes"],) * 2)
    if not spec["sees_gpus"]:
        # What a fork shares with us it does not take. CUDA reserves more than it uses.
        resource.setrlimit(resource.RLIMIT_DATA, (int(spec["memory_bytes"] * BURST) + _data_bytes(),) * 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _take_cores(spec)
    environment = dict(spec["environment"])
    if account is not None:
        account.become()
        environment |= {"USER": account.name, "LOGNAME": account.name}
    # To become another user undoes the tie.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    os.umask(spec["umask"])
    environment[DESCRIPTOR_VARIABLE] = str(DESCRIPTOR)
    readable = map(Path, spec["readable"])
    hiding.hide(
        Path(spec["home"]),
        [work],
        readable,
        changes_nothing_else=True,
        shared=SHARED_FOLDERS,
        # What lies there is nobody's folder and nobody's memory, and would outlive it.
        has_shared_memory=False,
    )
    os.chdir(work)
    if spec["is_warm"]:
        os.environ.clear()
        os.environ.update(environment)
        kernel_host.open_streams()
        be_a_fresh_interpreter(environment)
        os._exit(kernel_host.run(spec["sdk"], spec["folder"], spec["file"]))
    os.execve(spec["command"][0], spec["command"], environment)


def be_a_fresh_interpreter(environment: Mapping[str, str]) -> None:
    """Undo what libraries that were imported before the fork hold for good: random numbers, threads."""
    import sys

    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()
    if torch := sys.modules.get("torch"):
        torch.seed()
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))


def _take_cores(spec: Mapping[str, Any]) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    number = spec["cores"]
    if 0 < number < len(allowed):
        # Neighbours begin with neighbouring cores.
        first = spec["kernel"] * number % len(allowed)
        os.sched_setaffinity(0, [allowed[(first + index) % len(allowed)] for index in range(number)])


def watch(
    line: socket.socket, wakeup: int, child: int, spec: Mapping[str, Any], confinement: Mapping[str, Any]
) -> tuple[int, str]:
    """Wait until the child has ended, or shall. Its code, negative for a signal, and what else there is to say."""
    looks: dict[float, Any] = {LOOK_SECONDS: _memory_excess, FOLDER_LOOK_SECONDS: _folder_excess}
    due = {period: time.monotonic() + period for period in looks}
    while True:
        wait = max(0.01, min(due.values()) - time.monotonic())
        ready, _, _ = select.select([line.fileno(), wakeup], [], [], wait)
        if line.fileno() in ready:
            return 0, ""
        if wakeup in ready:
            os.read(wakeup, 4096)
        for pid, status in _reaped():
            if pid == child:
                return os.waitstatus_to_exitcode(status), ""
        for period, look in looks.items():
            if (began := time.monotonic()) < due[period]:
                continue
            if excess := look(spec, confinement):
                return 0, excess
            took = time.monotonic() - began
            due[period] = began + took + max(period, took / LOOK_SHARE)


def _reaped() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def _memory_excess(spec: Mapping[str, Any], confinement: Mapping[str, Any]) -> str:
    pids, sizes = confinement["descendants"].below(os.getpid()), confinement["sizes"]
    limit = spec["memory_bytes"]
    held = confinement["memory"].held_bytes(pids, limit)
    # Files without a name in memory need not be mapped. One that is counts here and there, so each has the limit.
    held = max(held, sum(size for device, size in _nameless_files(pids) if device != _device(spec)))
    if held <= limit:
        return ""
    return f"it held {sizes.describe_bytes(held)} of memory; allowed are {sizes.describe_bytes(limit)}"


def _folder_excess(spec: Mapping[str, Any], confinement: Mapping[str, Any]) -> str:
    pids, sizes = confinement["descendants"].below(os.getpid()), confinement["sizes"]
    held, limit = sizes.held_bytes([Path(spec["work"])]), spec["folder_bytes"]
    held += sum(size for device, size in _nameless_files(pids) if device == _device(spec))
    if held <= limit:
        return ""
    return f"its folder held {sizes.describe_bytes(held)}; allowed are {sizes.describe_bytes(limit)}"


def _device(spec: Mapping[str, Any]) -> int:
    return Path(spec["work"]).stat().st_dev


def _nameless_files(pids: Iterable[int]) -> list[tuple[int, int]]:
    """The device and the bytes of each file that processes hold open though it was removed, or never had a name."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    facts = descriptor.stat()
                    if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 0:
                        found[facts.st_dev, facts.st_ino] = facts.st_blocks * 512
    return [(device, size) for (device, _), size in found.items()]


def _data_bytes() -> int:
    """What counts against RLIMIT_DATA now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def say(line: socket.socket, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        line.sendall(json.dumps(message).encode() + b"\n")


def _refusal(error: BaseException, spec: Mapping[str, Any]) -> dict[str, Any]:
    text = str(error)
    if isinstance(error, OSError):
        text = f"{error.filename or spec['folder']}: {os.strerror(error.errno) if error.errno else error}"
    return {"cannot_start": text, "is_transient": isinstance(error, OSError) and error.errno in _TRANSIENT}
