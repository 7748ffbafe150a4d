"""Copies of folders that users name: plain files only, no links, no more than limits allow."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from servicekit.archives import ArchiveLimits, checked_parts
from servicekit.errors import invalid
from servicekit.folders import sync_folder

_COPY_BYTES = 1024 * 1024
_READ_PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_LINKS = "a folder of plain files, without links"


def copy_plain_folder(
    source: Path, target: Path, limits: ArchiveLimits, field: str, left_out: Collection[str] = ()
) -> int:
    """Copy a folder of plain files to the new folder `target`, durable but for its name, without the folders in it
    that are called as one of `left_out`; the bytes of its files.

    400 naming `field` and what is something else, or too much; what was copied until then stays for the caller to
    remove. OSError for a disk in trouble.
    """
    members = size = 0
    for path, names, files, descriptor in os.fwalk(source):
        names[:] = [name for name in names if name not in left_out]
        folder = target / Path(path).relative_to(source)
        folder.mkdir()
        for name in [*names, *files]:
            shown = str(Path(path, name).relative_to(source))
            checked_parts(shown, limits)
            mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
            members += 1
            if members > limits.members:
                raise invalid(field, str(source), f"at most {limits.members} files and folders")
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                raise invalid(field, shown, _NO_LINKS)
            size = _copy(name, descriptor, folder / name, size, limits.size_bytes, field, str(source))
    for folder in sorted((path for path in target.rglob("*") if path.is_dir()), reverse=True):
        sync_folder(folder)
    sync_folder(target)
    return size


def _copy(name: str, folder: int, target: Path, copied: int, most: int, field: str, shown: str) -> int:
    """Copy the plain file `name` of an open folder; how many bytes were copied with it, `copied` being those before.
    400 when that is more than `most`."""
    with os.fdopen(os.open(name, _READ_PLAIN, dir_fd=folder), "rb") as reader, target.open("xb") as writer:
        if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
            raise invalid(field, name, _NO_LINKS)
        while chunk := reader.read(_COPY_BYTES):
            copied += len(chunk)
            if copied > most:
                raise invalid(field, shown, f"at most {most} bytes in all")
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return copied
