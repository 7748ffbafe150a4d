"""One pass over tunings of models that have gone: what runs is stopped, what has ended is deleted after a while."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from servicekit.errors import Code, ServiceError
from servicekit.reconcile import Next

from tuning_service.domain.study import Kind
from tuning_service.usecases.follow_trials import AWAY
from tuning_service.usecases.ports import Studies, Wake
from tuning_service.usecases.tunings import Models

log = logging.getLogger(__name__)


class RemoveOrphans:
    """Safe to be killed anywhere and to repeat.

    A model has gone when it was not there for `grace_seconds`, as far as this process saw: an older database of the
    service of models may have been put back, and what a tuning found cannot be.
    """

    def __init__(
        self,
        studies: Studies,
        models: Models,
        *,
        grace_seconds: float,
        now: Callable[[], datetime],
        wake: Wake,
        wake_removals: Wake,
    ) -> None:
        self._studies, self._models, self._now = studies, models, now
        self._grace = timedelta(seconds=grace_seconds)
        self._wake, self._wake_removals = wake, wake_removals
        self._gone_since: dict[str, datetime] = {}

    async def step(self) -> Next:
        for uid, name in await self._studies.models():
            try:
                await self._look(uid, name)
            except ServiceError as error:
                # What is in the way of one is not in the way of the others.
                log.warning("model %s: whether it has gone is not known now: %s", name, error)
                if error.code in AWAY:
                    break
        return Next.LATER

    async def _look(self, uid: str, name: str) -> None:
        if await self._is_there(uid, name):
            self._gone_since.pop(uid, None)
            return
        since = self._gone_since.setdefault(uid, self._now())
        await self._end(uid, is_due=self._now() - since >= self._grace)

    async def _is_there(self, uid: str, name: str) -> bool:
        try:
            return await self._models.uid_of(name) == uid
        except ServiceError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            return False

    async def _end(self, model_uid: str, *, is_due: bool) -> None:
        for study in await self._studies.of_kind(Kind.MODEL_TUNING, model_uid=model_uid):
            if not study.status.is_final:
                log.info("tuning %s: its model has gone", study.name)
                await self._studies.request_stop(study.uid, self._now(), at_once=True)
                self._wake()
            elif is_due:
                await self._studies.delete(study.uid, self._now())
                self._wake_removals()
