"""Algorithms that users installed: a process for each study, run by `worker/plugin_host.py`.

They are asked batch by batch, the next one when all trials of the last one have ended, for that is what they are told.
Each trial's notes say which ask it comes of (`ask`) and for how many that was (`asked`), so that the table of trials is
enough to go on: a process that was started anew is asked the same again with the same results. Where the algorithm has
`get_state` and `set_state`, its state after each ask is kept on disk, which saves that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servicekit.errors import ServiceError

from tuning_service.domain.evaluation import Answer, Evaluation, Problem, Suggestion, TrialState
from tuning_service.domain.fields import Fields
from tuning_service.domain.study import Study
from tuning_service.suggestions.output_file import OutputFile
from tuning_service.suggestions.plugin_values import checked_values, hyper_parameters, results
from tuning_service.suggestions.process import (
    LineProcess,
    ProcessEndedError,
    WrongAnswerError,
    clean_environment,
    signal_name,
)
from tuning_service.usecases.ports import History, InstalledAlgorithm, SuggestionError

log = logging.getLogger(__name__)

HOST = Path(__file__).parent.parent / "worker" / "plugin_host.py"
OUTPUT_FILE = "plugin.log"
SHOWN_OUTPUT = 500
# Of the time that it may take, after which it says where it is.
TELLING_SHARE = 0.9
_KILLED = (128 + signal.SIGKILL, -signal.SIGKILL)


@dataclass(frozen=True)
class PluginLimits:
    """What an installed algorithm may take: for an ask, of memory in each of its processes, and in one file. One that
    was not asked for `idle_seconds` ends, and so does the one idle longest when there are `processes` others."""

    ask_seconds: float = 300.0
    idle_seconds: float = 300.0
    memory_bytes: int = 4 * 1024**3
    file_bytes: int = 1024**3
    processes: int = 8


@dataclass
class _Host:
    """The process of one study. `asks` is how often its object was asked, `change` what it heard of last; `batch` are
    the trials of its last ask, by number."""

    process: LineProcess | None = None
    asks: int = 0
    change: int = 0
    batch: dict[int, Evaluation] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ending: asyncio.TimerHandle | None = None
    used_at: float = 0.0


class PluginSuggestions:
    """Asks installed algorithms. `folder_of` and `python_of` say where one's files and its interpreter are, the latter
    raising ServiceError; what belongs to a study lies below `root`/UID/plugin."""

    def __init__(
        self,
        root: Path,
        folder_of: Callable[[InstalledAlgorithm], Path],
        python_of: Callable[[InstalledAlgorithm], str] = lambda _: "",
        limits: PluginLimits = PluginLimits(),
    ) -> None:
        self._root, self.folder_of, self._python_of, self._limits = root, folder_of, python_of, limits
        self._hosts: dict[str, _Host] = {}
        self._endings: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> dict[str, int]:
        """The processes that run, by study."""
        return {uid: host.process.pid for uid, host in self._hosts.items() if host.process}

    async def ask(
        self, study: Study, algorithm: InstalledAlgorithm, problem: Problem, history: History, count: int
    ) -> Answer:
        """As `usecases.ports.Suggestions` says."""
        host = self._hosts.setdefault(study.uid, _Host())
        async with host.lock:
            if host.ending:
                host.ending.cancel()
            try:
                asking = _Asking(self, host, study, algorithm, problem)
                for is_last in (False, True):
                    try:
                        return await asking.answer(history, count)
                    except ProcessEndedError as error:
                        await self.end(host)
                        # Killed by somebody who needed its memory, perhaps.
                        if is_last or error.code not in _KILLED:
                            raise SuggestionError(asking.failure(f"its process {_ended(error)}", error.said)) from error
                raise AssertionError
            except BaseException:
                await self.end(host)
                raise
            finally:
                self._rest(study.uid, host)

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

    async def start(self, study: Study, algorithm: InstalledAlgorithm) -> LineProcess:
        """A process in which nothing was made yet."""
        await self._make_room()
        folder = self.work_folder(study.uid)
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        try:
            python = await asyncio.to_thread(self._python_of, algorithm) or sys.executable
        except ServiceError as error:
            # It was there when the algorithm was installed.
            raise SuggestionError(f"algorithm {algorithm.name}: {error.message}") from error
        environment = clean_environment(os.environ)
        environment |= {"HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"}
        environment["PATH"] = f"{Path(python).parent}:{environment.get('PATH') or os.defpath}"
        return await LineProcess.start(
            [python, "-I", "-B", str(HOST), str(os.getpid())],
            sink=OutputFile(folder.with_name(OUTPUT_FILE)).write,
            environment=environment,
            cwd=folder,
        )

    def work_folder(self, study_uid: str) -> Path:
        """What an algorithm may write, and its state; what it prints lies beside it."""
        return self._root / study_uid / "plugin"

    def made(self, study: Study, algorithm: InstalledAlgorithm, problem: Problem) -> dict[str, Any]:
        """The message that has an algorithm made."""
        return {
            "do": "make",
            "name": algorithm.name,
            "folder": str(self.folder_of(algorithm)),
            "hyper_parameters": hyper_parameters(study.request),
            "parameters": {name: str(value) for name, value in problem.settings.items()},
            "log_level": algorithm.log_level.upper(),
            "memory_bytes": self._limits.memory_bytes,
            "file_bytes": self._limits.file_bytes,
        }

    @property
    def ask_seconds(self) -> float:
        return self._limits.ask_seconds

    def _rest(self, uid: str, host: _Host) -> None:
        loop = asyncio.get_running_loop()
        host.used_at = loop.time()
        if host.process is not None:
            host.ending = loop.call_later(self._limits.idle_seconds, self._end_idle, uid)

    def _end_idle(self, uid: str) -> None:
        # Out of sight at once: who asks from now on starts another one.
        ending = asyncio.ensure_future(self.end(self._hosts.pop(uid)))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def _make_room(self) -> None:
        running = [uid for uid, host in self._hosts.items() if host.process and not host.lock.locked()]
        if len(running) >= self._limits.processes:
            await self.forget(min(running, key=lambda uid: self._hosts[uid].used_at))

    async def end(self, host: _Host) -> None:
        """End its process."""
        process, host.process = host.process, None
        host.asks = host.change = 0
        host.batch = {}
        if process:
            # It kills all that the algorithm started first.
            await process.end(signal.SIGTERM)


class _Asking:
    """One ask of one study."""

    def __init__(
        self,
        owner: PluginSuggestions,
        host: _Host,
        study: Study,
        algorithm: InstalledAlgorithm,
        problem: Problem,
    ) -> None:
        self._owner, self._host, self._study = owner, host, study
        self._algorithm, self._problem = algorithm, problem
        words = {"minimize": "minimize", "minimise": "minimize", "maximize": "maximize", "maximise": "maximize"}
        self._maximize = Fields("", study.request).object("algoDef").word("objective", words, "minimize") == "maximize"

    async def answer(self, history: History, count: int) -> Answer:
        host = self._host
        asks: dict[int, dict[int, Evaluation]] = {}
        if host.process is not None:
            # What is told in full below is more than is needed, and right in any case.
            await self._learn(history, host.change, asks)
            asks = {number: host.batch | batch if number == host.asks else batch for number, batch in asks.items()}
            asks.setdefault(host.asks, host.batch)
            is_written = host.asks == 0 or asks[host.asks]
            if max(asks) != host.asks or not is_written or not host.process.is_running:
                # What it answered last was never written down, or it has gone.
                await self._owner.end(host)
        if host.process is None:
            asks = {}
            await self._learn(history, 0, asks)
        newest = max(asks, default=0)
        host.batch = asks.get(newest, {})
        if any(trial.state is TrialState.PENDING for trial in host.batch.values()):
            return Answer([])
        if host.process is None:
            host.process = await self._owner.start(self._study, self._algorithm)
            await self._tell(self._owner.made(self._study, self._algorithm, self._problem), "importing and making it")
            await self._catch_up(asks, newest)
        return await self._search(newest + 1, count)

    async def _learn(self, history: History, change: int, asks: dict[int, dict[int, Evaluation]]) -> None:
        is_newest = False
        while not is_newest:
            trials, change, is_newest = await history.since(change)
            for trial in trials:
                # Trials that somebody else suggested were no answer of its.
                if "ask" in trial.notes:
                    asks.setdefault(int(trial.notes["ask"]), {})[trial.number] = trial
        self._host.change = change

    async def _catch_up(self, asks: Mapping[int, Mapping[int, Evaluation]], newest: int) -> None:
        """Bring a new object to where the old one was."""
        if newest and self._state(newest).is_file():
            restored = await self._tell({"do": "restore", "state": str(self._state(newest))}, "set_state()")
            if restored.get("restored") is True:
                return
        told: Mapping[int, Evaluation] = {}
        for number in sorted(asks):
            asked = next(int(trial.notes["asked"]) for trial in asks[number].values())
            await self._tell(self._question(asked, told, None), "search()")
            told = asks[number]

    async def _search(self, number: int, count: int) -> Answer:
        host = self._host
        answer = await self._tell(self._question(count, host.batch, self._state(number)), "search()")
        try:
            found = checked_values(self._problem.space, answer.get("values"), count)
        except ValueError as error:
            raise SuggestionError(self.failure(str(error))) from error
        with contextlib.suppress(OSError):
            # The one before is for an answer that will not have been written down.
            self._state(number - 2 if answer.get("saved") is True else number).unlink(missing_ok=True)
        host.asks, host.batch = number, {}
        notes = {"ask": number, "asked": count}
        if not found:
            # There may be another search, with a bigger budget: it is asked as if this one had not been.
            await self._owner.end(host)
        return Answer([Suggestion((), notes, values) for values in found], is_exhausted=not found)

    def _question(self, count: int, batch: Mapping[int, Evaluation], state: Path | None) -> dict[str, Any]:
        return {
            "do": "search",
            "count": count,
            "results": results(list(batch.values()), maximize=self._maximize),
            "seconds": self._owner.ask_seconds * TELLING_SHARE,
            "state": None if state is None else str(state),
        }

    async def _tell(self, message: Mapping[str, Any], doing: str) -> dict[str, Any]:
        """Its answer; SuggestionError when there is none, or it is an error."""
        process = self._host.process
        assert process is not None
        try:
            answer = await process.ask(message, self._owner.ask_seconds)
        except TimeoutError as error:
            # With what it has said until then.
            await self._owner.end(self._host)
            where = _place_in(process.said, self._owner.folder_of(self._algorithm))
            text = f"{doing} took longer than {self._owner.ask_seconds:g} s{where}"
            raise SuggestionError(self.failure(text, "" if where else process.said)) from error
        except WrongAnswerError as error:
            raise SuggestionError(self.failure(f"its process {error}", process.said)) from error
        if "error" not in answer:
            return answer
        where = f" ({answer['where']})" if answer.get("where") else ""
        raise SuggestionError(self.failure(f"{doing} raised {answer['error']}{where}"[:2000]))

    def _state(self, number: int) -> Path:
        return self._owner.work_folder(self._study.uid) / f"state-{number}.pickle"

    def failure(self, what: str, said: str = "") -> str:
        """For people."""
        text = f"algorithm {self._algorithm.name}: {what}"
        return f"{text}; it printed last: {said[-SHOWN_OUTPUT:].strip()}" if said.strip() else text


def _place_in(said: str, folder: Path) -> str:
    """Where an algorithm was when it was told to say so: the innermost line of its own files."""
    found = re.search(rf'File "{re.escape(str(folder))}/(.+)", line (\d+) in (.+)', said)
    return f" ({found[1]}, line {found[2]}, in {found[3]})" if found else ""


def _ended(error: ProcessEndedError) -> str:
    number = -error.code if error.code < 0 else error.code - 128
    if number > 0:
        return f"was ended by {signal_name(number)}"
    return f"ended itself with exit code {error.code}"
