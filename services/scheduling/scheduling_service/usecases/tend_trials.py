"""What services ask of trials once they are started: what they wrote, and their deletion."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from servicekit.trials import check_ids
from workerkit.trial_results import TrialResults

from scheduling_service.usecases.exec_ports import Execs, TrialFiles

# Of the texts of one answer; a message has 64 MiB at most.
MAX_ANSWER_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class FoundResults:
    """By id, in the order asked for; `unread` had no room any more."""

    results: Mapping[str, TrialResults]
    unread: Sequence[str]


class ReadTrialResults:
    """Callable with ids of trials; unknown ones are left out."""

    def __init__(self, execs: Execs, files: TrialFiles) -> None:
        self._execs, self._files = execs, files

    async def __call__(self, task_ids: Sequence[str]) -> FoundResults:
        check_ids("task_id", task_ids)
        known = await self._execs.trials(task_ids)
        wanted = [task_id for task_id in dict.fromkeys(task_ids) if task_id in known]
        found: dict[str, TrialResults] = {}
        room = MAX_ANSWER_BYTES
        for task_id in wanted:
            if room <= 0:
                break
            found[task_id] = await asyncio.to_thread(self._files.results, task_id)
            room -= len(found[task_id].text.encode())
        return FoundResults(found, wanted[len(found) :])


class DeleteTrials:
    """Callable with ids of trials: hidden at once, stopped and removed by the loop; unknown ones can start no more."""

    def __init__(self, execs: Execs, now: Callable[[], datetime], wake: Callable[[], None]) -> None:
        self._execs, self._now, self._wake = execs, now, wake

    async def __call__(self, task_ids: Sequence[str]) -> None:
        check_ids("task_id", task_ids)
        await self._execs.delete_trials(list(dict.fromkeys(task_ids)), self._now())
        self._wake()
