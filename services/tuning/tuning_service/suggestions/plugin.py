"""Algorithms that users installed: a process for each study, run by `worker/plugin_host.py`.

They are asked batch by batch, the next one when all trials of the last one have ended, for that is what they are told.
Each trial's notes say which ask it comes of (`ask`) and for how many that was (`asked`), so that the table of trials is
enough to go on: a process that was started anew is asked the same again with the same results. Where the algorithm has
`get_state` and `set_state`, its state after each ask is kept on disk, which saves that.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field

from tuning_service.domain.evaluation import Answer, Problem
from tuning_service.domain.study import Study
from tuning_service.suggestions.plugin_ask import Host, PluginAsk
from tuning_service.suggestions.plugin_process import PluginStarter
from tuning_service.suggestions.process import LineProcess, ProcessEndedError, signal_name
from tuning_service.usecases.ports import History, InstalledAlgorithm, SuggestionError

_KILLED = (128 + signal.SIGKILL, -signal.SIGKILL)


@dataclass
class _StudyHost(Host):
    """Of one study. `ending` is when it ends though nobody wants its place; `used_at` when it was asked last."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ending: asyncio.TimerHandle | None = None
    used_at: float = 0.0


class PluginSuggestions:
    """Asks installed algorithms, in processes that `starter` starts; never more of them than its limits say."""

    def __init__(self, starter: PluginStarter) -> None:
        self._starter = starter
        self._hosts: dict[str, _StudyHost] = {}
        self._endings: set[asyncio.Task[None]] = set()
        # Processes that run, begin or end, and what tells those who wait that it may be their turn.
        self._places = 0
        self._change = asyncio.Event()

    @property
    def pids(self) -> dict[str, int]:
        """The processes that run, by study."""
        return {uid: host.process.pid for uid, host in self._hosts.items() if host.process}

    def doing(self, study_uid: str) -> str:
        """What the ask of a study is at, for people; empty while there is nothing to say."""
        host = self._hosts.get(study_uid)
        return host.doing if host else ""

    async def ask(
        self, study: Study, algorithm: InstalledAlgorithm, problem: Problem, history: History, count: int
    ) -> Answer:
        """As `usecases.ports.Suggestions` says."""
        host = self._hosts.setdefault(study.uid, _StudyHost())
        async with host.lock:
            if host.ending:
                host.ending.cancel()
            ask = PluginAsk(self, self._starter, host, study, algorithm, problem)
            try:
                for is_last in (False, True):
                    try:
                        return await ask.answer(history, count)
                    except ProcessEndedError as error:
                        await self.end(host)
                        # Killed by somebody who needed its memory, perhaps.
                        if is_last or error.code not in _KILLED:
                            raise SuggestionError(ask.failure(f"its process {_ended(error)}", error.said)) from error
                raise AssertionError
            except BaseException:
                await self.end(host)
                raise
            finally:
                self._rest(study.uid, host)

    async def start(self, host: Host, study: Study, algorithm: InstalledAlgorithm) -> None:
        """Give `host` a process in which nothing was made yet, when there is room for one."""
        await self._take_place(host)
        try:
            host.process = await self._starter.start(study, algorithm)
        except BaseException:
            self._give_back_place()
            raise

    async def end(self, host: Host) -> None:
        """End its process, if it has one."""
        if ending := self._ending_of(host):
            # Whoever waits may be cancelled; the process ends.
            await asyncio.shield(ending)

    async def forget(self, study_uid: str) -> None:
        """It has ended."""
        if host := self._hosts.pop(study_uid, None):
            if host.ending:
                host.ending.cancel()
            await self.end(host)

    async def close(self) -> None:
        """End all processes."""
        for uid in list(self._hosts):
            await self.forget(uid)
        await asyncio.gather(*self._endings, return_exceptions=True)

    def _rest(self, uid: str, host: _StudyHost) -> None:
        loop = asyncio.get_running_loop()
        host.used_at, host.doing = loop.time(), ""
        # One without a state would have to be asked everything again.
        if host.process is not None and host.keeps_state:
            host.ending = loop.call_later(self._starter.limits.idle_seconds, self._end_idle, uid)
        self._change.set()

    def _end_idle(self, uid: str) -> None:
        host = self._hosts.get(uid)
        if host is not None and not host.lock.locked():
            self._ending_of(host)

    async def _take_place(self, host: Host) -> None:
        most = self._starter.limits.processes
        while self._places >= most:
            idle = [one for one in self._hosts.values() if one.process and not one.lock.locked()]
            if idle:
                await self.end(min(idle, key=lambda one: (not one.keeps_state, one.used_at)))
                continue
            host.doing = f"waiting for its algorithm: {most} others are being asked"
            self._change.clear()
            await self._change.wait()
        self._places += 1
        host.doing = ""

    def _give_back_place(self) -> None:
        self._places -= 1
        self._change.set()

    def _ending_of(self, host: Host) -> asyncio.Task[None] | None:
        """Take its process away, at once, and end it."""
        process, host.process = host.process, None
        host.asks = host.change = 0
        host.batch, host.keeps_state = {}, False
        if process is None:
            return None
        ending = asyncio.ensure_future(self._end_process(process))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        return ending

    async def _end_process(self, process: LineProcess) -> None:
        try:
            # Its guard kills all that the algorithm started first.
            await process.end(signal.SIGTERM)
        finally:
            self._give_back_place()


def _ended(error: ProcessEndedError) -> str:
    number = -error.code if error.code < 0 else error.code - 128
    if number > 0:
        return f"was ended by {signal_name(number)}"
    return f"ended itself with exit code {error.code}"
