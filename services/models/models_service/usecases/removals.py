"""The loop that removes folders nobody owns any more."""

from __future__ import annotations

import asyncio
import logging

from servicekit.folders import remove_folder
from servicekit.reconcile import Next
from servicekit.times import utc_now

from models_service.usecases.ports import Catalog

log = logging.getLogger(__name__)


class Removals:
    """Carries out due orders; safe to kill anywhere and to repeat."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def step(self) -> Next:
        """Remove every folder whose order is due."""
        outlook = Next.LATER
        for directory in await self._catalog.due_removals(utc_now()):
            try:
                await asyncio.to_thread(remove_folder, directory)
                await self._catalog.forget_removal(directory)
                outlook = Next.AT_ONCE
            # RecursionError: a program left folders too deep in each other. The others must not wait for it.
            except (OSError, RecursionError):
                log.exception("%s could not be removed; trying again later", directory)
        return outlook
