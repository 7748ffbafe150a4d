"""Remove what is left of deleted runs."""

from __future__ import annotations

import logging

from servicekit.errors import Code, ServiceError
from servicekit.reconcile import Next

from training_service.domain.removals import Removal
from training_service.usecases.ports import Jobs, Removals, Workspace

log = logging.getLogger(__name__)


class RemoveRuns:
    """One pass over the orders: the job, then files, then the order with the metrics.

    Safe to be killed anywhere and to repeat; what cannot be removed keeps its order.
    """

    def __init__(self, removals: Removals, jobs: Jobs, workspace: Workspace) -> None:
        self._removals, self._jobs, self._workspace = removals, jobs, workspace
        self._told: dict[str, str] = {}

    async def __call__(self) -> Next:
        orders = await self._removals.pending()
        for order in orders:
            try:
                await self._carry_out(order)
            except Exception as error:
                # It comes again with every pass: people are told once.
                if self._told.get(order.uid) != str(error):
                    log.warning("%s %s is not removed yet: %s", order.kind, order.name, error, exc_info=True)
                self._told[order.uid] = str(error)
            else:
                self._told.pop(order.uid, None)
        return Next.LATER

    async def _carry_out(self, order: Removal) -> None:
        try:
            await self._jobs.delete(order.job_id)
        except ServiceError as error:
            if error.code is Code.ABORTED:
                # It runs although its run has ended: its answer was lost once. The next pass finds it ended.
                await self._jobs.stop(order.job_id)
            raise
        # Nothing writes to them any more.
        await self._workspace.remove(order)
        await self._removals.forget(order)
