"""The kernels of one model, and the tasks that they are given."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace

from servicekit.folders import remove_folder

from inference_service.kernels.domain.pools import (
    KernelFailedError,
    KernelLaunch,
    KernelTask,
    NotStartedError,
    PoolPhase,
    PoolState,
    PoolStatistics,
    TaskTimeoutError,
)
from inference_service.kernels.domain.scaling import Demand, wanted
from inference_service.kernels.engine.kernel import Ending, Kernel
from inference_service.kernels.engine.output import KernelOutput, log_file
from inference_service.kernels.engine.process import KernelProcess
from inference_service.kernels.engine.rates import Rates
from inference_service.kernels.engine.starter import KernelStarter, run_folder, work_folder
from inference_service.kernels.engine.task_queue import TaskQueue, Ticket

log = logging.getLogger(__name__)

# A task that kernels end over is given to so many.
TRIES = 3
LEAST_INTERVAL_SECONDS, CLOSING_SECONDS = 0.01, 2.0
# A kernel that lived for so long without a task was a good one.
STABLE_SECONDS = 10.0
NO_LIMIT_SECONDS = 7 * 24 * 3600.0
SHOWN_ENDED = 4
NO_PLACE = "waits for a place: as many kernels run as may (DLMESH_MAX_KERNELS); stop a model that nobody asks"


class Pool:
    """`on_change` is called when it may want more or fewer kernels than it has."""

    def __init__(self, launch: KernelLaunch, starter: KernelStarter, on_change: Callable[[], None]) -> None:
        self.launch, self._starter, self._on_change = launch, starter, on_change
        self._limits = starter.limits
        self._loop = asyncio.get_running_loop()
        self._queue = TaskQueue(self._limits.queue_tasks, self._limits.queue_bytes)
        self._kernels: dict[Kernel, asyncio.Task[None]] = {}
        self._ended: deque[Kernel] = deque(maxlen=SHOWN_ENDED)
        self._numbers = itertools.count(1)
        self._rates, self._sessions = Rates(), Counter[str]()
        self._log = log_file(run_folder(launch))
        # Kernels in a row that did not become ready for reasons of their own, and those that did nothing.
        self._failures, self._vain, self._retry_at = 0, 0, 0.0
        self._failing_since = 0.0
        self._is_proven = launch.is_proven
        self._is_dispatching = self._is_watched = self.is_draining = False
        self._state = PoolState(PoolPhase.STARTING)
        self.gone = asyncio.Event()

    @property
    def state(self) -> PoolState:
        """As `KernelPools.state` says."""
        return self._state

    @property
    def kernels(self) -> list[Kernel]:
        """Those that have not ended."""
        return list(self._kernels)

    @property
    def staying(self) -> list[Kernel]:
        """Those that are not to end either."""
        return [kernel for kernel in self._kernels if not (kernel.is_ending or kernel.has_ended)]

    async def submit(self, task: KernelTask) -> str:
        """As `KernelPools.submit` says."""
        if self._state.phase is PoolPhase.FAILED:
            raise KernelFailedError(self._state.reason)
        if self.is_draining:
            raise NotStartedError(f"model {self.launch.name} is being stopped")
        now = self._loop.time()
        ticket = self._queue.add(task, now)
        session = task.session_id or f"\0{ticket.key}"
        self._sessions[session] += 1
        self._rates.count(ticket.size, now)
        timer = self._late_timer(ticket)
        try:
            self._dispatch_soon()
            if not self._is_watched or not self.staying:
                self._on_change()
            return await ticket.answer
        finally:
            timer.cancel()
            self._queue.leave(ticket)
            self._sessions[session] -= 1
            if not self._sessions[session]:
                del self._sessions[session]
            if self.is_draining:
                self._on_change()

    def statistics(self) -> PoolStatistics:
        """As `KernelPools.statistics` says."""
        requests, size = self._rates.a_second(self._loop.time())
        kernels = tuple(kernel.statistics() for kernel in (*self._ended, *self._kernels))
        return PoolStatistics(len(self._sessions), len(self._queue), requests, size, kernels)

    def demand(self, now: float) -> Demand:
        """What it asks for."""
        if self._state.phase is PoolPhase.FAILED or (self.is_draining and not self._queue.has_callers):
            return Demand(0)
        policy, staying, pending = self.launch.policy, self.staying, len(self._queue)
        oldest = self._queue.oldest_seconds(now)
        is_prompt = any(kernel.is_ready for kernel in staying) and oldest < policy.schedule_interval_seconds
        minimum = 0 if self.is_draining else policy.kernel_min if self._is_proven else max(1, policy.kernel_min)
        idle = [now - kernel.idle_since for kernel in staying if kernel.is_ready and not kernel.is_busy]
        number = wanted(
            kernels=len(staying),
            busy=sum(kernel.is_busy for kernel in staying),
            # What kernels take as it comes needs no more of them.
            pending=0 if is_prompt else pending,
            batch_size=policy.task_batch_size,
            minimum=minimum,
            maximum=policy.kernel_max,
            idle_seconds=idle,
            release_seconds=policy.kernel_delay_release_seconds,
        )
        if self._vain and not any(kernel.is_ready for kernel in staying):
            # One after the other until one comes up again.
            number = min(number, max(1, len(staying)))
        return Demand(number, minimum, pending, oldest, self.launch.owner)

    def resize(self, number: int, room: int, now: float) -> int:
        """Have as many kernels as `number`, of which `room` may be started now; how many are."""
        staying = self.staying
        # Those that have been idle for the longest end first, and those that are not ready before them.
        surplus = sorted(staying, key=lambda one: (one.is_busy, one.is_ready, one.idle_since))[: len(staying) - number]
        for kernel in surplus if len(staying) > number else ():
            kernel.retire()
        started = 0
        while len(staying) + started < number and started < room and now >= self._retry_at and self._start():
            started += 1
        if self._state.phase is PoolPhase.STARTING and not self._vain:
            # Its share may be nothing, too.
            waits = self.demand(now).wanted > len(self.staying)
            self._state = PoolState(PoolPhase.STARTING, NO_PLACE if waits else "")
        return started

    def look(self, now: float) -> float | None:
        """Give up what nobody waits for; after how many seconds it is to be looked at again, None when only a change
        makes that necessary."""
        interval = max(LEAST_INTERVAL_SECONDS, self.launch.policy.schedule_interval_seconds)
        next_look = self._look(now, interval)
        # Else the first task has to ask for a look.
        self._is_watched = next_look is not None and next_look <= interval
        return next_look

    def _look(self, now: float, interval: float) -> float | None:
        patience = 0.0 if self.is_draining else self._limits.abandoned_seconds
        for kernel in self._kernels:
            kernel.give_up_abandoned(now, patience)
        if self.is_draining and not self._kernels and not self._queue.has_callers:
            self.gone.set()
            return None
        least = self.launch.policy.kernel_min
        is_quiet = not self._queue.has_callers and not any(kernel.is_busy for kernel in self._kernels)
        if is_quiet and len(self._kernels) == len(self.staying) == least:
            return None
        if now < self._retry_at:
            return self._retry_at - now
        if is_quiet and len(self.staying) > least and not self._vain:
            # Nothing happens before the first of them is released.
            since = min((kernel.idle_since for kernel in self.staying), default=now)
            return max(interval, since + self.launch.policy.kernel_delay_release_seconds - now)
        return interval

    def drain(self) -> None:
        """Take no new task; `gone` is set when the accepted are answered and all kernels have ended."""
        self.is_draining = True
        self._on_change()

    async def close(self) -> None:
        """End all of it; who waits is told so."""
        self.is_draining = True
        for ticket in list(self._queue.accepted):
            ticket.fail(NotStartedError("the platform is being stopped"))
        for kernel in self._kernels:
            kernel.retire()
        if keepers := list(self._kernels.values()):
            await asyncio.wait(keepers, timeout=CLOSING_SECONDS)
        for kernel in self._kernels:
            kernel.kill("the platform is being stopped")
        await asyncio.gather(*keepers, return_exceptions=True)
        self.gone.set()

    def _late_timer(self, ticket: Ticket) -> asyncio.TimerHandle:
        seconds = ticket.task.timeout_seconds
        late = TaskTimeoutError(f"no answer within {seconds:g} s")
        return self._loop.call_later(seconds if seconds > 0 else NO_LIMIT_SECONDS, ticket.fail, late)

    def _start(self) -> bool:
        gpus = self._starter.gpus.take(self.launch.gpu)
        if gpus is None:
            if not self._starter.gpus.names:
                self._give_up("gpu: exclusive, but this machine has no GPU")
            return False
        number = next(self._numbers)
        host = socket.gethostname()
        kernel = Kernel(number, host, gpus, self.launch, self._limits, self._on_kernel_change)
        self._kernels[kernel] = asyncio.create_task(self._keep(kernel), name=f"kernel {self.launch.name}-{number}")
        return True

    async def _keep(self, kernel: Kernel) -> None:
        try:
            ending = await kernel.run(self._process)
        except Exception as error:
            log.exception("kernel %d of %s is given up", kernel.number, self.launch.name)
            ending = Ending(f"its process cannot be kept: {error}", is_passing=True)
        kernel.has_ended = True
        self._starter.gpus.give_back(self.launch.gpu, kernel.gpus)
        self._take_back(kernel, ending)
        self._judge(kernel, ending)
        self._dispatch_soon()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(remove_folder, work_folder(self.launch, kernel.number))
        del self._kernels[kernel]
        self._ended.append(kernel)
        self._on_change()

    async def _process(self, kernel: Kernel) -> KernelProcess:
        await asyncio.to_thread(run_folder(self.launch).mkdir, parents=True, exist_ok=True)
        output = KernelOutput(kernel.number, self._log)
        return await self._starter.start(self.launch, kernel.number, kernel.gpus, output)

    def _take_back(self, kernel: Kernel, ending: Ending) -> None:
        """What a kernel that has ended leaves is done by others, unless it was what ended it."""
        worked_on, behind, was_alone = kernel.leftovers()
        for ticket in worked_on:
            if kernel.was_late and was_alone:
                ticket.fail(TaskTimeoutError(f"the kernel was ended: {ending.words}"))
            elif not kernel.was_late:
                ticket.crashes += 1
                if ticket.crashes >= TRIES:
                    ticket.fail(KernelFailedError(f"{TRIES} kernels ended over it, the last so: {ending.words}"))
            ticket.is_alone = True
        self._queue.give_back([*worked_on, *behind])

    def _judge(self, kernel: Kernel, ending: Ending) -> None:
        """Whether kernels of this model can run at all, and when the next one may try."""
        now = self._loop.time()
        if kernel.is_ending and not kernel.was_late:
            # It was not needed any more.
            return
        log.warning("kernel %d of model %s: %s", kernel.number, self.launch.name, ending.words)
        if kernel.is_ready and (kernel.has_worked or now - kernel.idle_since > STABLE_SECONDS):
            self._vain = 0
            return
        self._vain += 1
        backoff = self._limits.first_backoff_seconds * 2 ** min(self._vain - 1, 16)
        self._retry_at = now + min(backoff, self._limits.longest_backoff_seconds)
        if kernel.is_ready:
            return
        self._failing_since = self._failing_since or now
        self._failures += not ending.is_passing
        patience = self._limits.trouble_seconds if self._is_proven else 0.0
        is_enough = self._failures >= self._limits.start_tries and now - self._failing_since >= patience
        if any(one.is_ready for one in self.staying):
            return
        if ending.is_final or is_enough:
            self._give_up(ending.words)
        else:
            self._state = replace(self._state, reason=f"its kernels do not start, and are tried again: {ending.words}")

    def _give_up(self, reason: str) -> None:
        self._state = PoolState(PoolPhase.FAILED, reason)
        for ticket in list(self._queue.accepted):
            ticket.fail(KernelFailedError(reason))

    def _on_kernel_change(self) -> None:
        if self._state.phase is not PoolPhase.FAILED and any(kernel.is_ready for kernel in self.staying):
            self._state = PoolState(PoolPhase.READY)
            self._failures, self._failing_since, self._is_proven = 0, 0.0, True
        self._dispatch_soon()
        if any(kernel.is_ending for kernel in self._kernels) or self.is_draining:
            self._on_change()

    def _dispatch_soon(self) -> None:
        # All that comes in this turn of the loop is one batch.
        if not self._is_dispatching:
            self._is_dispatching = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._is_dispatching = False
        while len(self._queue):
            free = [kernel for kernel in self._kernels if kernel.room]
            if not free:
                return
            kernel = max(free, key=lambda one: one.room)
            alike = sum(one.room == kernel.room for one in free)
            batch = self._queue.take(min(self.launch.policy.task_batch_size, -(-len(self._queue) // alike)))
            if batch:
                kernel.give(batch)
