"""Makes the modules beside the tests importable; a database and a room of studies for each of them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from servicekit.database import Database
from tuning_service.storage import MIGRATIONS

sys.path.insert(0, str(Path(__file__).parent))

from studies_room import StudiesRoom


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Of the tuning service, new; on each supported backend."""
    database = Database(database_url, "tuning")
    await database.migrate(MIGRATIONS)
    yield database
    await database.close()


@pytest.fixture
async def room(database: Database) -> AsyncIterator[StudiesRoom]:
    """The loop of studies over that database, with played jobs."""
    made = StudiesRoom(database)
    yield made
    await made.loop.close()
