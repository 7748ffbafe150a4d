"""The process of an algorithm that a user installed: started where it can do no harm, or given up."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from servicekit.errors import Code, ServiceError
from servicekit.output_file import OutputFile
from workerkit.confinement import hiding

from tuning_service.domain.study import Study
from tuning_service.suggestions.process import LineProcess, ProcessEndedError, WrongAnswerError, clean_environment
from tuning_service.usecases.ports import InstalledAlgorithm, SuggestionError

log = logging.getLogger(__name__)

_WORKER = Path(__file__).parent.parent / "worker"
GUARD, HOST = _WORKER / "plugin_guard.py", _WORKER / "plugin_host.py"
CONFINEMENT = Path(hiding.__file__).parent
OUTPUT_FILE = "plugin.log"
SHOWN_OUTPUT = 500


@dataclass(frozen=True)
class PluginLimits:
    """What an installed algorithm may take: time for an ask, and in all for the searches that bring a new process up to
    date; memory in each of its processes; bytes in one file, and in its folder.

    At most `processes` run. One that is not asked for `idle_seconds` ends if its state is on disk; the others end when
    another study needs their place. What does not come up is tried `start_tries` times.
    """

    ask_seconds: float = 300.0
    catch_up_seconds: float = 1800.0
    idle_seconds: float = 300.0
    memory_bytes: int = 4 * 1024**3
    file_bytes: int = 1024**3
    folder_bytes: int = 2 * 1024**3
    processes: int = 8
    start_tries: int = 3
    start_pause_seconds: float = 2.0


class _NotComeUpError(Exception):
    """The process is none that answers; the text says why."""


async def no_user(_: Study) -> str:
    """Everything runs as the platform's user."""
    return ""


class PluginStarter:
    """Starts processes in which no algorithm was made yet.

    `folder_of` and `python_of` say where an algorithm's files and its interpreter are (empty: ours), the latter raising
    ServiceError; `user_of` as whom what belongs to a study runs, empty for the platform's own user.
    """

    def __init__(
        self,
        home: Path,
        folder_of: Callable[[InstalledAlgorithm], Path],
        python_of: Callable[[InstalledAlgorithm], str] = lambda _: "",
        user_of: Callable[[Study], Awaitable[str]] = no_user,
        limits: PluginLimits = PluginLimits(),
    ) -> None:
        self._home, self._root, self.limits = home, home / "tuning", limits
        self.folder_of, self._python_of, self._user_of = folder_of, python_of, user_of
        self._is_warned = False

    def work_folder(self, study_uid: str) -> Path:
        """Where an algorithm works and may write, and its state is; what it prints lies beside it."""
        return self._root / study_uid / "plugin"

    async def start(self, study: Study, algorithm: InstalledAlgorithm) -> LineProcess:
        """`SuggestionError` when it does not come up, OSError when the machine has no room for it at the moment."""
        try:
            user = await self._user_of(study)
        except ServiceError as error:
            if error.code is not Code.INVALID_ARGUMENT:
                raise
            raise SuggestionError(f"algorithm {algorithm.name}: {error.message}") from error
        for number in range(self.limits.start_tries):
            if number:
                await asyncio.sleep(self.limits.start_pause_seconds * 2 ** (number - 1))
            try:
                return await self._start(study, algorithm, user)
            except _NotComeUpError as error:
                reason = str(error)
                log.warning("algorithm %s of study %s does not come up: %s", algorithm.name, study.name, reason)
        raise SuggestionError(f"algorithm {algorithm.name}: its process does not come up: {reason}")

    async def _start(self, study: Study, algorithm: InstalledAlgorithm, user: str) -> LineProcess:
        try:
            python = await asyncio.to_thread(self._python_of, algorithm) or sys.executable
        except ServiceError as error:
            # It was there when the algorithm was installed.
            raise _NotComeUpError(error.message) from error
        folder = self.work_folder(study.uid)
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        environment = clean_environment(os.environ)
        environment |= {"HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"}
        environment["PATH"] = f"{Path(python).parent}:{environment.get('PATH') or os.defpath}"
        self._warn()
        process = await LineProcess.start(
            [sys.executable, "-I", "-S", str(GUARD), self._spec(python, self.folder_of(algorithm), folder, user)],
            sink=OutputFile(folder.with_name(OUTPUT_FILE)).write,
            environment=environment,
        )
        try:
            await self._greet(process, python)
        except BaseException:
            await process.end(signal.SIGTERM)
            raise
        return process

    def _spec(self, python: str, algorithm_folder: Path, folder: Path, user: str) -> str:
        limits = self.limits
        # A virtual environment is a link to the interpreter that has the library.
        pythons = [python, os.path.realpath(python)]
        needed = [str(algorithm_folder), str(HOST), *pythons]
        # Environments may lie in the home.
        prefixes = {sys.prefix, sys.base_prefix, *(str(Path(path).parent.parent) for path in pythons)}
        return json.dumps(
            {
                "parent": os.getpid(),
                "command": [python, "-I", "-B", str(HOST)],
                "confinement": str(CONFINEMENT),
                "home": str(self._home),
                "folder": str(folder),
                "readable": [*needed, *sorted(prefixes)],
                "needed": needed,
                "user": user,
                "memory_bytes": limits.memory_bytes,
                "file_bytes": limits.file_bytes,
                "folder_bytes": limits.folder_bytes,
            }
        )

    async def _greet(self, process: LineProcess, python: str) -> None:
        """Wait until it answers: what goes wrong from then on is the algorithm's own."""
        try:
            answer = await process.ask({"do": "hello"}, self.limits.ask_seconds)
        except ProcessEndedError as error:
            raise _NotComeUpError(with_output(f"{python} {error}", error.said)) from error
        except TimeoutError as error:
            text = f"{python} did nothing for {self.limits.ask_seconds:g} s"
            raise _NotComeUpError(with_output(text, process.said)) from error
        except WrongAnswerError as error:
            raise _NotComeUpError(with_output(f"{python} {error}", process.said)) from error
        if "cannot_start" in answer:
            if answer.get("is_transient") is True:
                raise OSError(f"the process of an algorithm cannot be started now: {answer['cannot_start']}")
            raise _NotComeUpError(str(answer["cannot_start"]))

    def _warn(self) -> None:
        if not self._is_warned and not hiding.supported_abi():
            log.warning("this kernel has no Landlock: installed algorithms can read what the platform's user can")
        self._is_warned = True


def with_output(text: str, said: str) -> str:
    """A message with what a process printed last."""
    return f"{text}; it printed last: {said[-SHOWN_OUTPUT:].strip()}" if said.strip() else text
