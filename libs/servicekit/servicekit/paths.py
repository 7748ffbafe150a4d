"""Server-side paths from requests are hostile: they are resolved first and confined then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from servicekit.errors import invalid

# What Linux takes. Looking up a longer one takes quadratic time, all for nothing.
MAX_PATH_LENGTH = 4096


class DataRoots:
    """The folders that a request may point into."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = tuple(root.resolve() for root in roots)

    def resolve(self, field: str, text: str) -> Path:
        """The existing path that `text` names, symbolic links followed; relative text is below the first root.

        400 naming `field` when it lies outside the roots or does not exist. What lies outside is refused before it is
        looked up, so that the answer tells nothing about the rest of the disk.
        """
        allowed = "an existing path inside " + " or ".join(str(root) for root in self._roots)
        check_length(field, text)
        if not text or "\0" in text:
            raise invalid(field, text, allowed)
        try:
            path = (self._roots[0] / text).resolve()
        except (OSError, RuntimeError) as error:
            raise invalid(field, text, allowed) from error
        if not any(path.is_relative_to(root) for root in self._roots):
            raise invalid(field, text, allowed, reason="PATH_OUTSIDE_DATA_ROOTS")
        try:
            exists = path.exists()
        except OSError:
            exists = False
        if not exists:
            raise invalid(field, text, allowed, reason="PATH_NOT_FOUND")
        return path


def confined(base: Path, relative: str, field: str) -> Path:
    """`relative` below `base`, symbolic links followed (it need not exist); 400 naming `field` when it escapes."""
    allowed = "a relative path that stays inside its folder"
    check_length(field, relative)
    if not relative or "\0" in relative or Path(relative).is_absolute():
        raise invalid(field, relative, allowed)
    root = base.resolve()
    try:
        path = (root / relative).resolve()
    except (OSError, RuntimeError) as error:
        raise invalid(field, relative, allowed) from error
    if path == root or not path.is_relative_to(root):
        raise invalid(field, relative, allowed)
    return path


def check_length(field: str, path: str) -> None:
    """400 naming `field` when `path` is longer than any path of a file."""
    if len(path) > MAX_PATH_LENGTH:
        raise invalid(field, path, f"a path of at most {MAX_PATH_LENGTH} characters")
