"""Run by a test: makes or deletes a model and ends as if killed at the named point."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from models_service.storage.catalog import SqlCatalog
from models_service.usecases import folders, removals
from models_service.usecases.models import ModelInput
from servicekit.identity import Identity, acting_as

sys.path.insert(0, str(Path(__file__).parent))
from conftest import make_room


def die(*_: Any, **__: Any) -> Any:
    os._exit(9)


async def main(home: Path, point: str) -> None:
    room = await make_room(home, f"sqlite:///{home / 'db' / 'models.sqlite'}")
    if point == "copy":
        folders.sync_folder = die  # files are there, the folder is not finished
    if point == "before-row":
        SqlCatalog.add_model = die  # type: ignore[method-assign]
    with acting_as(Identity("alice")):
        await room.models.create(ModelInput(name="m1", template_name="net"))
        if point == "after-row":
            die()
        if point == "remove":
            removals.remove_folder = die
        await room.models.delete("m1")
        if point == "delete":
            die()
        await room.removals.step()


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
