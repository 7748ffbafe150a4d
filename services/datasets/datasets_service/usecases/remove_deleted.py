"""Carry out ordered removals."""

from __future__ import annotations

import logging

from servicekit.reconcile import Next

from datasets_service.usecases.ports import Files, Jobs, Storage

log = logging.getLogger(__name__)


class RemoveDeleted:
    """One pass; safe to be killed anywhere and to repeat."""

    def __init__(self, storage: Storage, files: Files, jobs: Jobs) -> None:
        self._storage, self._files, self._jobs = storage, files, jobs

    async def __call__(self) -> Next:
        async with self._storage.snapshot() as datasets:
            removals = await datasets.list_removals()
        for removal in removals:
            try:
                await self._files.remove(removal.uid)
                await self._jobs.delete(removal.job_id)
                async with self._storage.transaction() as datasets:
                    await datasets.forget_removal(removal.uid)
            except Exception:
                log.exception("cannot remove the files of dataset %s yet", removal.uid)
        return Next.LATER
