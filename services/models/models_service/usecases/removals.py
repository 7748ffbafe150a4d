"""The loop that removes folders nobody owns any more."""

from __future__ import annotations

import asyncio
import logging

from servicekit.times import utc_now

from models_service.usecases.folders import remove_folder
from models_service.usecases.ports import Catalog

log = logging.getLogger(__name__)


class Removals:
    """Carries out due orders; safe to kill anywhere and to repeat."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def step(self) -> bool:
        """Remove every folder whose order is due; True when there was one."""
        worked = False
        for directory in await self._catalog.due_removals(utc_now()):
            try:
                await asyncio.to_thread(remove_folder, directory)
                await self._catalog.forget_removal(directory)
                worked = True
            except OSError:
                log.exception("%s could not be removed; trying again later", directory)
        return worked
