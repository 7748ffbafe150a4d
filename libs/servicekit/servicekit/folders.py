"""Whole folders: copied so that the copy outlives a power cut, and removed whatever a program left in them."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from pathlib import Path

_COPY_BYTES = 1024 * 1024
_LIFTED_DEPTH = 100


def copy_file(source: Path, target: Path, *, follow_link: bool = False) -> None:
    """Copy a file to the new file `target`, durable but for its name; OSError when it is a link or no plain file.

    The copy may be read by all and changed by us, and is executable where `source` is.
    """
    # Opening a pipe would wait for a writer; a link put there in this moment would lead elsewhere.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_link else os.O_NOFOLLOW)
    with os.fdopen(os.open(source, flags), "rb") as reader:
        mode = os.fstat(reader.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a plain file", str(source))
        with target.open("xb") as writer:
            shutil.copyfileobj(reader, writer, _COPY_BYTES)
            os.fchmod(writer.fileno(), 0o644 | (mode & 0o111))
            writer.flush()
            os.fsync(writer.fileno())


def write_file(target: Path, text: str) -> None:
    """Write the new file `target`, durable but for its name."""
    with target.open("x", encoding="utf-8") as writer:
        writer.write(text)
        writer.flush()
        os.fsync(writer.fileno())


def copy_folder(source: Path, target: Path, *, follow_links: bool) -> None:
    """Copy the folder `source` to the new folder `target`, durable but for its name when this returns.

    Links are copied as what they lead to, or as links. OSError as it came: when the disk is full, it says so.
    """
    target.mkdir()
    for path in source.iterdir():
        copy = target / path.name
        if path.is_symlink() and not follow_links:
            copy.symlink_to(path.readlink())
        elif path.is_dir():
            copy_folder(path, copy, follow_links=follow_links)
        else:
            copy_file(path, copy, follow_link=follow_links)
    sync_folder(target)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove `folder` with all it holds, however deep, also what a program closed; of a link only itself, nothing when
    it is gone. OSError otherwise."""
    if folder.is_symlink():
        folder.unlink()
        return
    try:
        _remove_tree(folder)
    except FileNotFoundError:
        # Gone, or a part of it in this moment; what is left of it is there for the next call.
        if folder.exists():
            raise


def _remove_tree(folder: Path) -> None:
    while True:
        try:
            shutil.rmtree(folder)
            return
        except (RecursionError, OSError) as error:
            # It takes a call within a call, and an open file, for each folder in a folder.
            too_deep = isinstance(error, RecursionError) or error.errno == errno.EMFILE
            if not (too_deep or isinstance(error, PermissionError)) or not _made_removable(folder):
                raise


def _made_removable(folder: Path) -> bool:
    """Open what a program closed, and move the folders that lie deep in `folder` to its top; False when there was
    nothing to do."""
    is_changed = bool(~folder.stat().st_mode & stat.S_IRWXU)
    folder.chmod(stat.S_IRWXU)
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for path, names, _, descriptor in os.fwalk(folder):
            for name in names:
                mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
                # Links lead elsewhere.
                if stat.S_ISDIR(mode) and ~mode & stat.S_IRWXU:
                    os.chmod(name, stat.S_IRWXU, dir_fd=descriptor)
                    is_changed = True
            if len(Path(path).relative_to(folder).parts) >= _LIFTED_DEPTH:
                for name in names:
                    os.rename(name, secrets.token_hex(8), src_dir_fd=descriptor, dst_dir_fd=top)
                    is_changed = True
                names.clear()
    finally:
        os.close(top)
    return is_changed
