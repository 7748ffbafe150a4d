"""Ranks that run as another user of the operating system. Standard library only: the keeper uses it."""

from __future__ import annotations

import ctypes
import os
import pwd
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PR_SET_DUMPABLE = 4
_libc = ctypes.CDLL(None, use_errno=True)


class RefusedError(Exception):
    """The ranks cannot run as that user, however often it is tried."""


@dataclass(frozen=True)
class Account:
    """A user that is not ours."""

    name: str
    uid: int
    gid: int
    home: str

    def environment(self, otherwise_home: Path) -> dict[str, str]:
        """What a logon sets; the account of a service may have no home that exists."""
        home = self.home if Path(self.home).is_dir() else str(otherwise_home)
        return {"HOME": home, "USER": self.name, "LOGNAME": self.name}

    def become(self) -> None:
        """Be that user, with all their groups and without any capability; there is no way back."""
        os.initgroups(self.name, self.gid)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        # Else a fork, other than a program that is executed, may not look into its own /proc/self.
        _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def find_account(name: str) -> Account | None:
    """The user `name`; None when that is our own, or empty. RefusedError when we cannot run anything as they."""
    if not name:
        return None
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise RefusedError(f"execution user {name!r} is not known on this machine") from None
    if entry.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise RefusedError(
            f"ranks cannot run as execution user {name!r}: the platform runs as {_own_name()}, and only root may start "
            "processes of other users"
        )
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def share_directory(directory: Path, account: Account) -> None:
    """Let the account make files in `directory`, which stays ours: what we wrote there it can neither change nor remove
    (the sticky bit), and nobody else can look in."""
    os.chown(directory, -1, account.gid)
    directory.chmod(0o1770)


def give_folder(folder: Path, account: Account) -> None:
    """Make what is ours in `folder` the account's. Links are not followed, and files with a second name stay as they
    are: an earlier run could have made one of a file elsewhere."""
    ours = os.geteuid()
    for _, names, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        for name in (*names, *files):
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            is_single = stat.S_ISDIR(found.st_mode) or found.st_nlink == 1
            if found.st_uid == ours and is_single:
                os.chown(name, account.uid, account.gid, dir_fd=descriptor, follow_symlinks=False)
    if folder.stat(follow_symlinks=False).st_uid == ours:
        os.chown(folder, account.uid, account.gid, follow_symlinks=False)


def first_closed(account: Account, paths: Iterable[Path]) -> str:
    """The first of `paths` that the account cannot read, or the folder on the way that is closed to it; empty when it
    can read them all."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            account.become()
            os.write(writer, _first_closed(paths).encode()[:4000])
            os._exit(0)
        except BaseException as error:
            os.write(writer, str(error).encode()[:4000])
        os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if status and not text:
        return "anything: the process that tried was ended"
    return text


def _first_closed(paths: Iterable[Path]) -> str:
    for path in paths:
        if os.access(path, os.R_OK):
            continue
        closed = (folder for folder in reversed(path.parents) if not os.access(folder, os.X_OK))
        return str(next(closed, path))
    return ""


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"
