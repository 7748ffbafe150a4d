"""What a user program cannot reach though it runs as the platform's user: its passwords, databases and processes.

Landlock, a part of the kernel that needs no privileges, lets a process give up access to files for itself and all that
it starts. It knows what is allowed, not what is forbidden, so everything is allowed that lies beside the way to the
home. Standard library only: the keeper uses it.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# Below the home; the rest of it (passwords, databases, logs, what runs, other jobs) is hidden.
SHARED_FOLDERS: tuple[str, ...] = ("data", "datasets", "fabric", "frameworks", "models")
SHARED_FOLDERS += ("templates", "trainings", "validations", "weights")
# Programs of plug-ins and what Triton serves are run beside the queue, too. Of `execs` a task, and of `inference` a
# prediction, has its own folder, where it works.
READ_ONLY_FOLDERS = ("exec-frameworks", "inference")
SHARED_MEMORY = "/dev/shm"
# Before 2 files could not be renamed from folder to folder by a process that had given up anything.
LEAST_ABI = 2

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITE_FILE, _READ_FILE, _TRUNCATE = 1 << 1, 1 << 2, 1 << 14
# Remove files and folders, make any kind of file but a device, and rename from folder to folder.
_CHANGE_FOLDER = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13
_MAKE_FOLDER, _REMOVE = 1 << 7, 1 << 4 | 1 << 5
_PATH_BENEATH = 1
_SCOPE_SIGNAL = 1 << 1
_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 24, 47, 4
_CAPABILITY_VERSION = 0x20080522
# What containers give root, but for devices: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
# net_bind_service, net_raw, ipc_lock, sys_chroot, sys_nice, audit_write, setfcap.
_KEPT_CAPABILITIES = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 14, 18, 23, 29, 31))

_libc = ctypes.CDLL(None, use_errno=True)


def supported_abi() -> int:
    """Version of the kernel's Landlock; 0 where there is none, or none that real programs can run under."""
    version = int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))
    return version if version >= LEAST_ABI else 0


def hide(
    home: Path,
    writable: Iterable[Path],
    readable: Iterable[Path],
    *,
    changes_nothing_else: bool = False,
    shared: Iterable[str] = (*SHARED_FOLDERS, *READ_ONLY_FOLDERS),
    emptied: Iterable[Path] = (),
    has_shared_memory: bool = True,
) -> None:
    """Give up, for this process and all that it starts, what is hidden; `writable` and `readable` lie below `home`.

    With `changes_nothing_else` only `writable` and devices can be written, and all the rest that is not hidden read.
    `shared` are the folders of the home that are not hidden. In `emptied` folders can be made, but nothing in them;
    where the home lies elsewhere, whatever is there can be removed. Without `has_shared_memory` the files of /dev/shm
    are hidden, in which nothing limits and removes them.
    Nothing is given up where there is no `home`; files stay within reach where the kernel has no Landlock. OSError when
    the kernel refuses.
    """
    home = home.resolve()
    try:
        if not home.is_dir():
            return
    except PermissionError:
        # Of another user, and closed to us.
        return
    abi = supported_abi()
    if abi:
        hidden_devices = () if has_shared_memory else (SHARED_MEMORY,)
        reachable = _reachable(home, writable, readable, shared, not changes_nothing_else, hidden_devices)
        more = [(str(folder), _MAKE_FOLDER | (0 if folder in home.parents else _REMOVE)) for folder in emptied]
        _restrict(abi, reachable, more)
    if os.geteuid() == 0:
        # Root looks into every process and every disk, whatever files it has given up.
        _drop_capabilities()


def _restrict(abi: int, reachable: Iterable[tuple[str, bool]], more: Iterable[tuple[str, int]]) -> None:
    file_rights = _READ_FILE | _WRITE_FILE | (_TRUNCATE if abi >= 3 else 0)
    everything = file_rights | _CHANGE_FOLDER
    # Files, network (all of it is allowed), and what cannot be done to processes outside.
    attributes = struct.pack("QQQ", everything, 0, _SCOPE_SIGNAL) if abi >= 6 else struct.pack("Q", everything)
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    try:
        allowed = itertools.chain(
            ((path, everything if is_writable else _READ_FILE) for path, is_writable in reachable),
            more,
        )
        for path, rights in allowed:
            try:
                beneath = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                mode = os.fstat(beneath).st_mode
                if stat.S_ISLNK(mode):
                    continue
                rule = struct.pack("<Qi", rights & (everything if stat.S_ISDIR(mode) else file_rights), beneath)
                _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
            finally:
                os.close(beneath)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _reachable(
    home: Path,
    writable: Iterable[Path],
    readable: Iterable[Path],
    shared: Iterable[str],
    rest_is_writable: bool,
    hidden_devices: Sequence[str],
) -> Iterator[tuple[str, bool]]:
    """Everything beside the way from / to the home, and what of the home is shared or the rank's own."""
    is_root = os.geteuid() == 0
    way = [*reversed(home.parents), home]
    for folder, step in itertools.pairwise(way):
        for entry in _entries(folder):
            if entry == str(step):
                continue
            if entry == "/dev" and (is_root or hidden_devices):
                # The raw disks hold the hidden files, too.
                devices = (device for device in _entries(entry) if device not in hidden_devices)
                yield from ((device, True) for device in devices if not (is_root and _is_disk(device)))
            else:
                is_device = entry == "/dev"
                yield entry, (rest_is_writable or is_device) and not (is_root and entry in ("/proc", "/sys"))
    for name in shared:
        yield str(home / name), rest_is_writable and name not in READ_ONLY_FOLDERS
    for paths, is_writable in ((readable, False), (writable, True)):
        for path in paths:
            resolved = path.resolve()
            # A folder that holds the home would let everything in it be reached.
            if resolved != home and home in resolved.parents:
                yield str(resolved), is_writable


def _entries(folder: str | Path) -> Sequence[str]:
    try:
        with os.scandir(folder) as entries:
            # What links lead to lies beside the way, too, or is hidden.
            return [entry.path for entry in entries if not entry.is_symlink()]
    except OSError:
        return ()


def _is_disk(device: str) -> bool:
    try:
        return stat.S_ISBLK(os.lstat(device).st_mode)
    except OSError:
        return True


def _drop_capabilities() -> None:
    capability = 0
    while True:
        if capability not in _KEPT_CAPABILITIES and _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            if ctypes.get_errno() == errno.EINVAL:
                break
            raise OSError(ctypes.get_errno(), "prctl(PR_CAPBSET_DROP)")
        capability += 1
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(24)
    if _libc.capget(header, held) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    kept = sum(1 << number for number in _KEPT_CAPABILITIES)
    words = [word & (kept >> (32 * (index // 3)) & 0xFFFFFFFF) for index, word in enumerate(struct.unpack("=6I", held))]
    if _libc.capset(header, struct.pack("=6I", *words)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
