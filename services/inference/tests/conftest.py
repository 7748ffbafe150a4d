"""Makes the fixtures beside the tests importable."""

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from inference_service import wiring
from prediction_room import Room, application
from testkit.services import ALICE, acting_as, running
from triton_fixtures import ServedHome, served


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedHome]:
    """One real Triton a session."""
    with served(tmp_path_factory.mktemp("triton")) as room:
        yield room


@pytest.fixture
async def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    monkeypatch.setattr(wiring, "REMOVALS_LATER_SECONDS", 0.2)
    built, room = application(None, tmp_path)
    async with running(built, room.settings) as room.client:
        with acting_as(ALICE):
            yield room
