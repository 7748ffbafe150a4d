"""The records of an attempt: what its keeper and its engine tell each other, in a folder that its ranks cannot write.

It lies beside the attempt's directory, where ranks may write what they like: `attempt-1` has `keeper-attempt-1`. What
is read there is checked all the same, for a kernel may hide nothing. Standard library only: keepers use it.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeGuard

MOST_BYTES = 16 << 20
MOST_PID = 1 << 22


def folder(directory: Path) -> Path:
    """Of the attempt in `directory`; it need not be there."""
    return directory.with_name(f"keeper-{directory.name}")


def make(directory: Path) -> Path:
    """The folder of the attempt in `directory`, which nobody else can look into: the environment holds a token."""
    made = folder(directory)
    made.mkdir(mode=0o700, parents=True, exist_ok=True)
    return made


def write(path: Path, value: Any, *, durable: bool = True, mode: int = 0o644) -> None:
    """Replace `path` whole."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "w") as file:
        file.write(json.dumps(value))
        if durable:
            file.flush()
            os.fsync(file.fileno())
    draft.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """None while it is not there. What is no plain file with a JSON object is none of ours, and is not there either."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MOST_BYTES:
            return None
        try:
            value = json.loads(file.read())
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def open_lock(path: Path) -> TextIO:
    """A file to lock, made when missing and never emptied; a link in its place is removed, not followed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if path.is_symlink():
        path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, flags, 0o600), "w")


def take(lock: TextIO) -> bool:
    """Whether this process has the lock of an attempt now; the end of the process or of the file gives it back."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether a process has the lock."""
    with open_lock(path) as lock:
        return not take(lock)


@dataclass(frozen=True)
class Process:
    """What tells a process from every other. `start_time` is None of one that had ended when it was looked at."""

    pid: int
    start_time: int | None
    boot_id: str = ""


def process_of(record: Mapping[str, Any] | None) -> Process | None:
    """The process that a record names; None when the record is none of ours."""
    if record is None:
        return None
    pid, start_time, boot_id = record.get("pid"), record.get("start_time"), record.get("boot_id", "")
    if not is_pid(pid) or not (start_time is None or type(start_time) is int) or not isinstance(boot_id, str):
        return None
    return Process(pid, start_time, boot_id)


def is_pid(value: object) -> TypeGuard[int]:
    """A number that processes of this machine can have."""
    return type(value) is int and 0 < value <= MOST_PID


def rows_of(record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What a record says of ranks, those that are named as we name them."""
    rows = (record or {}).get("ranks")
    found = rows if isinstance(rows, list) else []
    return [
        row
        for row in found
        if isinstance(row, dict) and type(row.get("rank")) is int and (row.get("pid") == 0 or is_pid(row.get("pid")))
    ]
