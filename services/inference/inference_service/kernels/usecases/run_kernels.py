"""Make models with a kernel true: pools for what is started, none for what is not."""

from __future__ import annotations

import asyncio
import logging

from servicekit.reconcile import Next

from inference_service.kernels.domain.models import MAX_MESSAGE_LENGTH, KernelModel, KernelState
from inference_service.kernels.domain.pools import KernelPools, PoolPhase
from inference_service.kernels.usecases.ports import KernelFolders, KernelModels
from inference_service.kernels.usecases.started_kernels import StartedKernels

log = logging.getLogger(__name__)
_MOVES = (KernelState.STARTING, KernelState.STOPPING)
_RESTING = (KernelState.STOPPED, KernelState.FAILED)


class RunKernels:
    """One pass over all models; safe to be killed anywhere and to repeat. Pools end with this process."""

    def __init__(
        self,
        models: KernelModels,
        folders: KernelFolders,
        pools: KernelPools,
        started: StartedKernels,
        execution_user: str = "",
    ) -> None:
        self._models, self._folders, self._pools, self._started = models, folders, pools, started
        self._execution_user = execution_user
        self._drains: dict[str, asyncio.Task[None]] = {}

    async def __call__(self) -> Next:
        models = await self._models.all()
        self._started.set([model for model in models if await self._see_to(model)])
        self._forget_drains()
        return Next.SOON if self._drains or any(model.state in _MOVES for model in models) else Next.LATER

    async def _see_to(self, model: KernelModel) -> bool:
        """Whether it takes tasks now."""
        try:
            if model.state.runs:
                return await self._keep_running(model)
            await self._keep_ended(model)
        except Exception as error:
            # One model must not keep the others from running.
            log.exception("%s: not seen to", model.name)
            await self._say(model, f"cannot be seen to now: {error}")
        return False

    async def _keep_running(self, model: KernelModel) -> bool:
        if model.uid in self._drains:
            # It was started again while the last pool ends.
            return False
        await self._pools.ensure(model.launch(self._folders.folder(model.uid), self._execution_user))
        pool, before = self._pools.state(model.uid), model.state
        if pool.phase is PoolPhase.FAILED:
            log.warning("kernels of %s cannot run: %s", model.name, pool.reason)
            model.fail(pool.reason)
            if await self._models.move(model, before):
                self._drain(model.uid)
            return False
        if before is KernelState.STARTED or pool.phase is not PoolPhase.READY:
            await self._say(model, pool.reason)
            return before is KernelState.STARTED
        model.started()
        if not await self._models.move(model, before):
            # It was stopped meanwhile; the next pass sees that.
            model.state = before
            return False
        log.info("%s takes tasks", model.name)
        return True

    async def _keep_ended(self, model: KernelModel) -> None:
        if self._pools.state(model.uid).phase is not PoolPhase.ABSENT:
            self._drain(model.uid)
        elif model.uid not in self._drains and model.state is KernelState.STOPPING:
            model.stopped()
            await self._models.move(model, KernelState.STOPPING)

    async def _say(self, model: KernelModel, message: str) -> None:
        """What a model that moves waits for, or what is the matter with one that runs."""
        message = message[:MAX_MESSAGE_LENGTH]
        if model.state not in _RESTING and model.status_message != message:
            model.status_message = message
            await self._models.move(model, model.state)

    def _drain(self, uid: str) -> None:
        if uid not in self._drains:
            self._drains[uid] = asyncio.create_task(self._pools.drain(uid))

    def _forget_drains(self) -> None:
        for uid, task in list(self._drains.items()):
            if not task.done():
                continue
            del self._drains[uid]
            if not task.cancelled() and (error := task.exception()):
                log.error("a pool did not end: %s", error, exc_info=error)


class RemoveStrayKernels:
    """One pass that removes what kills have left on disk: of models that were never published, or were deleted, and of
    weights that were replaced."""

    def __init__(self, models: KernelModels, folders: KernelFolders) -> None:
        self._models, self._folders = models, folders

    async def __call__(self) -> Next:
        await self._folders.remove_strays({model.uid: model.weights for model in await self._models.all()})
        return Next.LATER
