"""Deletion of trials: out of sight at once, ended, then removed as other trainings are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from servicekit.errors import ServiceError
from servicekit.reconcile import Next
from servicekit.times import utc_now
from servicekit.trials import DELETED_FOR, check_ids

from training_service.usecases.ports import Trials

log = logging.getLogger(__name__)

# How often those are looked at of which it is known.
FORGET_EVERY = timedelta(hours=1)


class DeleteTrials:
    """Callable with ids of trials; unknown ones can start no more."""

    def __init__(self, trials: Trials, wake: Callable[[], None], now: Callable[[], datetime] = utc_now) -> None:
        self._trials, self._wake, self._now = trials, wake, now

    async def __call__(self, trial_ids: Sequence[str]) -> None:
        check_ids("trial_id", trial_ids)
        await self._trials.delete(list(dict.fromkeys(trial_ids)), self._now())
        self._wake()


class RemoveDeletedTrials:
    """One pass over deleted trials that have ended; safe to be killed anywhere and to repeat."""

    def __init__(
        self, trials: Trials, wake_removals: Callable[[], None], now: Callable[[], datetime] = utc_now
    ) -> None:
        self._trials, self._wake_removals, self._now = trials, wake_removals, now
        self._forget_at: datetime | None = None

    async def __call__(self) -> Next:
        if self._forget_at is None or self._now() >= self._forget_at:
            await self._trials.forget_deleted(self._now() - DELETED_FOR)
            self._forget_at = self._now() + FORGET_EVERY
        for uid in await self._trials.deleted():
            try:
                await self._trials.remove(uid)
            except ServiceError as error:
                # What uses it ends first.
                log.info("deleted trial %s stays for now: %s", uid, error.message)
            else:
                self._wake_removals()
        return Next.LATER
