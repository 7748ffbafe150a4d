"""The Python processes in which a Triton of ours runs models."""

from __future__ import annotations

from pathlib import Path

from inference_service.triton.installation import STUB


def running_stubs(pid: int, repository: Path) -> dict[tuple[str, int], list[int]]:
    """Process ids by model and version, of the server with process id `pid`. Source: the stub's arguments begin with
    the path of its model.py.
    """
    found: dict[tuple[str, int], list[int]] = {}
    for child in _children(pid):
        try:
            arguments = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            # Of a process that has ended and was not waited for, nothing is left.
            if len(arguments) < 2 or STUB not in arguments[0].decode():
                continue
            program = Path(arguments[1].decode())
            name, version = program.relative_to(repository).parts[:2]
            found.setdefault((name, int(version)), []).append(child)
        except (OSError, ValueError):
            continue
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    # A child is listed with the thread that started it.
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += map(int, file.read_text().split())
        except OSError:
            continue
    return children
