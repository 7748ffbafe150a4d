"""Whole studies, asked of real processes over a real database, whatever is killed meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from servicekit.database import Database
from servicekit.reconcile import Next
from servicekit.times import utc_now
from studies_room import StudiesRoom, request_of
from thinking_room import PATIENCE_SECONDS
from tuning_service.domain.study import Status, Study, Trial
from tuning_service.storage.plugin_folders import DiskPluginFolders
from tuning_service.suggestions.built_in import BuiltInSuggestions
from tuning_service.suggestions.importance_process import ImportanceProcesses
from tuning_service.suggestions.plugin import PluginSuggestions
from tuning_service.suggestions.plugin_process import PluginLimits, PluginStarter
from tuning_service.suggestions.suggestions import Suggestions
from tuning_service.usecases.ports import InstalledAlgorithm

PLUGINS = Path(__file__).with_name("plugins")
WIDTH = {"name": "width", "type": "Discrete", "dataType": "int", "discreteIntVal": [8, 16, 32]}
RATE = {"name": "rate", "type": "Range", "dataType": "double", "minDbVal": 0.0, "maxDbVal": 1.0}
RESOURCE = [{"name": "ResourceName", "value": "epochs"}, {"name": "ResourceValue", "value": "9"}]


async def nobody_else(_: Study) -> str:
    """Algorithms run as who runs the tests."""
    return ""


class Room(StudiesRoom):
    """With real processes that think."""

    def __init__(self, database: Database, home: Path) -> None:
        super().__init__(database)
        self.folders = DiskPluginFolders(home, [PLUGINS])
        self.built_in = BuiltInSuggestions()
        self.plugins = PluginSuggestions(
            PluginStarter(home, self.folders.folder_of, self.folders.python_of, nobody_else, PluginLimits())
        )
        self.suggestions = Suggestions(  # type: ignore[assignment]
            self.algorithms, self.built_in, self.plugins, ImportanceProcesses()
        )
        self._begin()

    def _begin(self) -> None:
        super()._begin()
        step = self.loop.step

        async def patient() -> Next:
            """A pass, as soon as what was asked is answered: passes are quicker than processes."""
            if asks := [ask for _, ask in self.loop._asks.values()]:
                await asyncio.wait(asks, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            return await step()

        self.loop.step = patient  # type: ignore[method-assign]

    async def install(self, name: str) -> None:
        algorithm = InstalledAlgorithm(name, f"uid-{name}", "ann", utc_now(), name)
        self.folders.install(algorithm, None)
        await self.algorithms.add(algorithm)

    def killing(self, seed: int) -> Callable[[Trial], str]:
        """Trials that finish, while processes and the service are killed at random."""
        luck = random.Random(seed)

        def end(trial: Trial) -> str:
            if luck.random() < 0.15:
                for pid in [*self.built_in.pids, *self.plugins.pids.values()]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if luck.random() < 0.15:
                self.restart()
            return "FINISHED" if trial.number % 5 else "ERROR"

        return end


@pytest.fixture
async def room(database: Database, tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(database, tmp_path)
    yield room
    await room.close()
    await room.suggestions.close()  # type: ignore[attr-defined]


def seen(trials: Sequence[Trial]) -> list[tuple[Any, ...]]:
    return [(trial.number, trial.values, trial.notes, trial.status) for trial in trials]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["Hyperband", "ASHA", "Evolution", "Grid", "Random", "Nevergrad"])
async def test_a_study_is_the_same_whatever_is_killed(room: Room, algorithm: str) -> None:
    request = {"algorithm": algorithm, "hyperParams": [RATE, WIDTH], "maxJobNum": 20, "maxParalleJobNum": 3}
    if algorithm in ("Hyperband", "ASHA"):
        request["algoParams"] = RESOURCE
    else:
        request["algoParams"] = [{"name": "RandomSeed", "value": "3"}]
    for name in ("evolution", "grid"):
        await room.install(name)
    if algorithm in ("Evolution", "Grid"):
        request["algorithm"] = algorithm.lower()
    ended = []
    for killed in (False, True):
        uid = await room.add(f"study {killed}", uid=f"study-{killed}", request=request_of(**request))
        study = await room.to_the_end(
            uid, room.killing(5) if killed else lambda t: "FINISHED" if t.number % 5 else "ERROR"
        )
        assert study.status is Status.FINISHED, study.status_message
        trials = await room.trials(uid)
        # The grid has 15 points.
        assert len(trials) == (15 if algorithm == "Grid" else 20)
        ended.append((seen(trials), study.best))
    assert ended[0] == ended[1]


async def test_an_algorithm_that_is_there_no_longer(room: Room) -> None:
    await room.install("grid")
    request = request_of(algorithm="grid", hyperParams=[RATE, WIDTH], maxJobNum=3)
    uid = await room.add(request=request)
    await room.until_running(uid, 1)
    await room.algorithms.remove("grid")
    study = await room.to_the_end(uid)
    assert study.status is Status.FAILED
    assert study.status_message == "algorithm grid is installed no longer"


async def test_a_plugin_that_raises_fails_its_study_and_no_other(room: Room, tmp_path: Path) -> None:
    await room.install("grid")
    (room.folders.folder_of(InstalledAlgorithm("grid", "uid-grid", "ann", utc_now())) / "optimizer.py").write_text(
        "raise ValueError('not today')\n"
    )
    bad = await room.add("bad", request=request_of(algorithm="grid", hyperParams=[RATE, WIDTH], maxJobNum=3))
    good = await room.add("good", request=request_of(hyperParams=[RATE, WIDTH], maxJobNum=3))
    study = await room.to_the_end(bad)
    assert study.status is Status.FAILED
    assert study.status_message == (
        "algorithm grid: importing and making it raised ValueError: not today (optimizer.py, line 1, in <module>)"
    )
    assert (await room.to_the_end(good)).status is Status.FINISHED
