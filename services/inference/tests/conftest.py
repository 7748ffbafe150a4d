"""Makes the fixtures beside the tests importable."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from triton_fixtures import ServedHome, served


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedHome]:
    """One real Triton a session."""
    with served(tmp_path_factory.mktemp("triton")) as room:
        yield room
