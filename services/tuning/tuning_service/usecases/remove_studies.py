"""One pass over what was deleted: end and remove trials, then files, then rows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from servicekit.errors import ServiceError
from servicekit.reconcile import Next

from tuning_service.domain.study import Kind
from tuning_service.usecases.follow_trials import AWAY
from tuning_service.usecases.ports import Runner, Studies, StudyFolders

log = logging.getLogger(__name__)

TRIALS_AT_ONCE = 2_000
ORPHANS_EVERY_SECONDS = 600.0


class RemoveStudies:
    """Safe to be killed anywhere and to repeat: a row goes when all that it names has gone."""

    def __init__(
        self,
        studies: Studies,
        runners: Mapping[Kind, Runner],
        folders: StudyFolders,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._studies, self._runners, self._folders, self._clock = studies, runners, folders, clock
        self._orphans_at = -ORPHANS_EVERY_SECONDS

    async def step(self) -> Next:
        if self._clock() - self._orphans_at >= ORPHANS_EVERY_SECONDS:
            await self._remove_orphans()
            self._orphans_at = self._clock()
        deleted = await self._studies.deleted()
        # Those of one kind need another peer than those of the other.
        outlooks = await asyncio.gather(
            *(self._remove_all([uid for uid, its_kind in deleted if its_kind is kind], kind) for kind in Kind)
        )
        if not deleted:
            return Next.LATER
        return Next.AT_ONCE if all(outlooks) else Next.SOON

    async def _remove_all(self, uids: Sequence[str], kind: Kind) -> bool:
        """False when one has to be tried again later."""
        is_done = True
        for uid in uids:
            try:
                await self._remove(uid, kind)
            except Exception as error:
                is_done = False
                if not isinstance(error, ServiceError | OSError):
                    log.exception("deleted study %s cannot be removed yet", uid)
                    continue
                log.warning("deleted study %s cannot be removed yet: %s", uid, error)
                if isinstance(error, ServiceError) and error.code in AWAY:
                    break
        return is_done

    async def _remove(self, uid: str, kind: Kind) -> None:
        if runs := await self._studies.runs(uid, TRIALS_AT_ONCE):
            await self._runners[kind].delete([job_id for job_ids in runs.values() for job_id in job_ids])
            await self._studies.remove_trials(uid, list(runs))
            return
        await asyncio.to_thread(self._folders.remove, uid)
        await self._studies.remove(uid)

    async def _remove_orphans(self) -> None:
        names = await asyncio.to_thread(self._folders.orphans)
        known = await self._studies.known(names)
        for name in names:
            if name in known:
                continue
            try:
                await asyncio.to_thread(self._folders.remove, name)
            except OSError:
                log.exception("folder %s cannot be removed yet", name)
