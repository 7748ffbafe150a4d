"""Tasks that end their process are told apart from the others, wherever they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# The crash is behind the first chunk that is waited for, with more tasks than are sent ahead.
PROGRAM = """
import os, signal
from datasets_service.sources.cores import Cores

def crash(number):
    if number == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return number

if __name__ == "__main__":
    with Cores(apart=True) as cores:
        seen = list(cores.map(crash, range(1000), 1000, -1))
    assert [task for task, _ in seen] == list(range(1000))
    assert [task for task, result in seen if result != task] == [40]
"""


@pytest.mark.slow
def test_a_crash_behind_what_is_waited_for_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    subprocess.check_call([sys.executable, tmp_path / "program.py"], timeout=120)
