"""How much memory there is, in a container with a limit and elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from servicekit import machine

OF_MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, OF_MACHINE),
        ("max\n", OF_MACHINE),
        ("", OF_MACHINE),
        (f"{OF_MACHINE // 4}\n", OF_MACHINE // 4),
        (f"{OF_MACHINE * 4}\n", OF_MACHINE),
    ],
)
def test_memory_is_the_containers_where_that_has_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, expected: int
) -> None:
    monkeypatch.setattr(machine, "CONTAINER_LIMIT", tmp_path / "memory.max")
    if limit is not None:
        machine.CONTAINER_LIMIT.write_text(limit)
    assert machine.memory_bytes() == expected
