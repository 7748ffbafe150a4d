"""One ask of an algorithm that a user installed: bring its process to where the study is, and have it search."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from servicekit.folders import remove_folder

from tuning_service.domain.evaluation import Answer, Evaluation, Problem, Suggestion, TrialState
from tuning_service.domain.fields import Fields
from tuning_service.domain.study import Study
from tuning_service.suggestions.plugin_process import PluginStarter, with_output
from tuning_service.suggestions.plugin_values import checked_values, hyper_parameters, most_sets, results
from tuning_service.suggestions.process import LineProcess, WrongAnswerError
from tuning_service.usecases.ports import History, InstalledAlgorithm, SuggestionError

# Of the time that it may take, after which it says where it is.
TELLING_SHARE = 0.9


@dataclass
class Host:
    """The process of one study. `asks` is how often its object was asked, `change` what it heard of last; `batch` are
    the trials of its last ask, by number; `keeps_state` says that its state after that is on disk, `doing` what is
    waited for."""

    process: LineProcess | None = None
    asks: int = 0
    change: int = 0
    batch: dict[int, Evaluation] = field(default_factory=dict)
    keeps_state: bool = False
    doing: str = ""


class Processes(Protocol):
    """Who has the processes of all studies."""

    async def start(self, host: Host, study: Study, algorithm: InstalledAlgorithm) -> None:
        """Give `host` a process in which nothing was made yet."""

    async def end(self, host: Host) -> None:
        """End its process, if it has one."""


class PluginAsk:
    """One ask of one study."""

    def __init__(
        self,
        processes: Processes,
        starter: PluginStarter,
        host: Host,
        study: Study,
        algorithm: InstalledAlgorithm,
        problem: Problem,
    ) -> None:
        self._processes, self._starter, self._limits = processes, starter, starter.limits
        self._host, self._study, self._algorithm, self._problem = host, study, algorithm, problem
        words = {"minimize": "minimize", "minimise": "minimize", "maximize": "maximize", "maximise": "maximize"}
        self._maximize = Fields("", study.request).object("algoDef").word("objective", words, "minimize") == "maximize"

    async def answer(self, history: History, count: int) -> Answer:
        """What to try next. ProcessEndedError when its process ended, else as `usecases.ports.Suggestions` says."""
        host = self._host
        count = min(count, most_sets(self._problem.space))
        asks: dict[int, dict[int, Evaluation]] = {}
        if host.process is not None:
            # What is told in full below is more than is needed, and right in any case.
            await self._learn(history, host.change, asks)
            asks = {number: host.batch | batch if number == host.asks else batch for number, batch in asks.items()}
            asks.setdefault(host.asks, host.batch)
            is_written = host.asks == 0 or asks[host.asks]
            if max(asks) != host.asks or not is_written or not host.process.is_running:
                # What it answered last was never written down, or it has gone.
                await self._processes.end(host)
        if host.process is None:
            asks = {}
            await self._learn(history, 0, asks)
        newest = max(asks, default=0)
        host.batch = asks.get(newest, {})
        if any(trial.state is TrialState.PENDING for trial in host.batch.values()):
            return Answer([])
        if host.process is None:
            await self._processes.start(host, self._study, self._algorithm)
            await self._tell(self._made(), "importing and making it")
            await self._catch_up(asks, newest)
        return await self._search(newest + 1, count)

    def failure(self, what: str, said: str = "") -> str:
        """For people."""
        return with_output(f"algorithm {self._algorithm.name}: {what}", said)

    async def _learn(self, history: History, change: int, asks: dict[int, dict[int, Evaluation]]) -> None:
        is_newest = False
        while not is_newest:
            trials, change, is_newest = await history.since(change)
            for trial in trials:
                # Trials that somebody else suggested were no answer of its.
                if "ask" in trial.notes:
                    asks.setdefault(int(trial.notes["ask"]), {})[trial.number] = trial
        self._host.change = change

    def _made(self) -> dict[str, Any]:
        """The message that has the algorithm made."""
        return {
            "do": "make",
            "name": self._algorithm.name,
            "folder": str(self._starter.folder_of(self._algorithm)),
            "hyper_parameters": hyper_parameters(self._study.request),
            "parameters": {name: str(value) for name, value in self._problem.settings.items()},
            "log_level": self._algorithm.log_level.upper(),
        }

    async def _catch_up(self, asks: Mapping[int, Mapping[int, Evaluation]], newest: int) -> None:
        """Bring a new object to where the old one was, within one limit for all of it."""
        host, loop = self._host, asyncio.get_running_loop()
        deadline = loop.time() + self._limits.catch_up_seconds
        if newest and self._state(newest).is_file():
            restored = await self._tell({"do": "restore", "state": str(self._state(newest))}, "set_state()")
            if restored.get("restored") is True:
                host.keeps_state = True
                return
        told: Mapping[int, Evaluation] = {}
        for number in sorted(asks):
            where = f"search {number} of {newest} again, for its process is a new one without the state of the old one"
            host.doing = f"its algorithm is being brought up to date: {where}"
            asked = next(int(trial.notes["asked"]) for trial in asks[number].values())
            left = deadline - loop.time()
            if left <= 0:
                raise self._late(where)
            is_short = left < self._limits.ask_seconds
            try:
                await self._tell(self._question(asked, told, None), "search()", left if is_short else None)
            except _TooLongError as error:
                raise (self._late(where) if is_short else error) from error
            told = asks[number]
        host.doing = ""

    def _late(self, where: str) -> SuggestionError:
        limit = f"it could not be brought up to date within {self._limits.catch_up_seconds:g} s"
        return SuggestionError(self.failure(f"{limit}: {where}; get_state() and set_state() would save that"))

    async def _search(self, number: int, count: int) -> Answer:
        host = self._host
        answer = await self._tell(self._question(count, host.batch, self._state(number)), "search()")
        try:
            found = checked_values(self._problem.space, answer.get("values"), count)
        except ValueError as error:
            raise SuggestionError(self.failure(str(error))) from error
        host.keeps_state = answer.get("saved") is True
        with contextlib.suppress(OSError):
            # The one before is for an answer that will not have been written down.
            self._state(number - 2 if host.keeps_state else number).unlink(missing_ok=True)
        host.asks, host.batch = number, {}
        notes = {"ask": number, "asked": count}
        if not found:
            # There may be another search, with a bigger budget: it is asked as if this one had not been.
            await self._processes.end(host)
        return Answer([Suggestion((), notes, values) for values in found], is_exhausted=not found)

    def _question(self, count: int, batch: Mapping[int, Evaluation], state: Path | None) -> dict[str, Any]:
        return {
            "do": "search",
            "count": count,
            "results": results(list(batch.values()), maximize=self._maximize),
            "seconds": self._limits.ask_seconds * TELLING_SHARE,
            "state": None if state is None else str(state),
        }

    async def _tell(self, message: Mapping[str, Any], doing: str, limit_seconds: float | None = None) -> dict[str, Any]:
        """Its answer; SuggestionError when there is none within the limit, or it is an error."""
        process = self._host.process
        assert process is not None
        limit_seconds = self._limits.ask_seconds if limit_seconds is None else limit_seconds
        try:
            answer = await process.ask(message, limit_seconds)
        except TimeoutError as error:
            # With what it has said until then.
            await self._processes.end(self._host)
            where = _place_in(process.said, self._starter.folder_of(self._algorithm))
            text = f"{doing} took longer than {limit_seconds:g} s{where}"
            raise _TooLongError(self.failure(text, "" if where else process.said)) from error
        except WrongAnswerError as error:
            raise SuggestionError(self.failure(f"its process {error}", process.said)) from error
        if "ended" in answer:
            # Its folder is over its limit, and would be again.
            await self._processes.end(self._host)
            with contextlib.suppress(OSError):
                await asyncio.to_thread(remove_folder, self._starter.work_folder(self._study.uid))
            raise SuggestionError(self.failure(f"{doing} was ended: {answer['ended']}"[:2000]))
        if "error" not in answer:
            return answer
        where = f" ({answer['where']})" if answer.get("where") else ""
        raise SuggestionError(self.failure(f"{doing} raised {answer['error']}{where}"[:2000]))

    def _state(self, number: int) -> Path:
        return self._starter.work_folder(self._study.uid) / f"state-{number}.pickle"


class _TooLongError(SuggestionError):
    """It took longer than it may."""


def _place_in(said: str, folder: Path) -> str:
    """Where an algorithm was when it was told to say so: the innermost line of its own files."""
    found = re.search(rf'File "{re.escape(str(folder))}/(.+)", line (\d+) in (.+)', said)
    return f" ({found[1]}, line {found[2]}, in {found[3]})" if found else ""
