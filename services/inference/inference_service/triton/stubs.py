"""The Python processes in which a Triton of ours runs models."""

from __future__ import annotations

from pathlib import Path

from workerkit.confinement.descendants import end_tree

from inference_service.triton.installation import STUB


def running_stubs(pid: int, repository: Path) -> dict[tuple[str, int], list[int]]:
    """Process ids by model and version, of the server with process id `pid`."""
    found: dict[tuple[str, int], list[int]] = {}
    for child in _children(pid):
        if (version := _version_of(child, repository)) is not None:
            found.setdefault(version, []).append(child)
    return found


def end_strays(repository: Path) -> list[tuple[str, int]]:
    """End the stubs of servers that have ended, and what they started; which models they ran.

    A stub looks whether its server lives, but not while its model does not return.
    """
    ended = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (version := _version_of(int(entry.name), repository)) is not None:
            end_tree(int(entry.name))
            ended.append(version)
    return ended


def _version_of(pid: int, repository: Path) -> tuple[str, int] | None:
    """Which model and version it runs. Source: the stub's arguments begin with the path of its model.py."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        # Of a process that has ended and was not waited for, nothing is left.
        if len(arguments) < 2 or STUB not in arguments[0].decode():
            return None
        name, version = Path(arguments[1].decode()).relative_to(repository).parts[:2]
        return name, int(version)
    except (OSError, ValueError):
        return None


def _children(pid: int) -> list[int]:
    children: list[int] = []
    # A child is listed with the thread that started it.
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += map(int, file.read_text().split())
        except OSError:
            continue
    return children
