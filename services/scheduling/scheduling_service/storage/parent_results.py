"""What a trial left, for one that goes on from it. Its program may have put anything there."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from servicekit.folders import copy_folder, remove_folder

log = logging.getLogger(__name__)

# What a copy ends with because of what a program left: pipes, sockets, closed folders, names without an end.
_OF_THE_PROGRAM = frozenset(
    (
        *(errno.EINVAL, errno.ENXIO, errno.EACCES, errno.EPERM, errno.ELOOP),
        *(errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG),
    )
)


def copy_results(results: Path, target: Path, most_bytes: int) -> bool:
    """Copy the folder `results` to the new folder `target`, durable but for its name; False, and nothing is there, when
    it is gone or cannot be copied whole, for a trial can do without.

    Links stay links, wherever they lead. Files may say that they hold more than they take on the disk: all together
    hold `most_bytes` at most, 0 is no limit. OSError for a disk in trouble.
    """
    if results.is_symlink() or not results.is_dir():
        return False
    try:
        if most_bytes and _said_bytes(results) > most_bytes:
            raise OSError(errno.EINVAL, f"its files hold more than {most_bytes} bytes")
        copy_folder(results, target, follow_links=False)
    except (OSError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno not in _OF_THE_PROGRAM:
            raise
        log.warning("nothing goes on from what is in %s: %s", results, error)
        remove_folder(target)
        return False
    return True


def _said_bytes(folder: Path) -> int:
    """How much the files below `folder` say that they hold; links are not followed."""
    total, left = 0, [str(folder)]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    return total
