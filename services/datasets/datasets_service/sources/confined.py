"""Opening files of a source: none may lie outside the data roots, whether by its path or by a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO


class SourceFileError(Exception):
    """A file of the source cannot be read; says why, without its name."""


class MissingSourceFileError(SourceFileError):
    """There is no such file."""


def is_inside(path: str | Path, data_roots: Sequence[Path]) -> bool:
    """Whether `path` lies in a data root once links are followed; it need not exist."""
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):
        return False
    return any(Path(real).is_relative_to(root) for root in data_roots)


def open_inside(path: str | Path, data_roots: Sequence[Path]) -> BinaryIO:
    """The regular file `path`; SourceFileError when it is none or lies outside."""
    if not is_inside(path, data_roots):
        raise SourceFileError("lies outside the data roots")
    try:
        # What opens must not be a link that came in between, nor a pipe that nobody writes to.
        descriptor = os.open(os.path.realpath(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingSourceFileError("does not exist") from error
    except (OSError, ValueError) as error:
        raise SourceFileError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceFileError("is not a file")
    return os.fdopen(descriptor, "rb")


def read_inside(path: str | Path, data_roots: Sequence[Path], max_bytes: int) -> bytes:
    """The content of `path`; SourceFileError also when it is longer than `max_bytes`."""
    try:
        with open_inside(path, data_roots) as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise SourceFileError(f"cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise SourceFileError(f"is larger than {max_bytes} bytes")
    return content
