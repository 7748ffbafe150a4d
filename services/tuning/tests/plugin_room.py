"""Plug-ins written for a test, and studies that they search in real processes."""

from __future__ import annotations

import textwrap
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from thinking_room import Table, until
from tuning_service.domain.evaluation import Answer, Problem, TrialState
from tuning_service.domain.fields import Fields
from tuning_service.domain.parameters import read_space
from tuning_service.domain.study import Kind, Study
from tuning_service.suggestions.plugin import PluginSuggestions
from tuning_service.suggestions.plugin_process import OUTPUT_FILE, PluginLimits, PluginStarter
from tuning_service.usecases.ports import InstalledAlgorithm, SuggestionError

PLUGINS = Path(__file__).with_name("plugins")
PARAMETERS = [
    {"name": "rate", "type": "Range", "dataType": "double", "minDbVal": -3, "maxDbVal": 0, "power": "10"},
    {"name": "width", "type": "Range", "dataType": "INT", "minIntVal": 8, "maxIntVal": 64, "step": "8"},
    {"name": "solver", "type": "Discrete", "dataType": "Str", "discreateStrVal": ["Adam", "SGD"]},
]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def study_of(uid: str = "study", objective: str = "minimize", parameters: Any = PARAMETERS) -> Study:
    request = {"hyperParams": parameters, "algoDef": {"objective": objective}}
    return Study(uid, "name", Kind.HYPER_SEARCH, "owner", request, "group", "group", 1, NOW)


def problem_of(study: Study, **settings: str) -> Problem:
    return Problem(read_space(Fields("", study.request)), settings, seed=1)


class Lab:
    """Plug-ins written for a test, and studies that they search."""

    def __init__(self, home: Path, suggestions: PluginSuggestions, starter: PluginStarter) -> None:
        self.home, self.suggestions, self.starter = home, suggestions, starter
        self.table = Table()

    def install(self, name: str, source: str | Path) -> InstalledAlgorithm:
        folder = self.home / "algorithms" / name
        folder.mkdir(parents=True)
        text = source.read_text() if isinstance(source, Path) else HEAD + textwrap.dedent(source)
        (folder / "optimizer.py").write_text(text)
        return InstalledAlgorithm(name, name, "owner", NOW)

    async def ask(
        self, algorithm: InstalledAlgorithm, count: int = 1, *, study: Study | None = None, **settings: str
    ) -> Answer:
        study = study or study_of()
        return await self.suggestions.ask(study, algorithm, problem_of(study, **settings), self.table, count)

    async def fails(self, source: str, count: int = 1, name: str = "bad") -> str:
        """The message of a study whose algorithm is `source`; nothing of it is left then."""
        algorithm = self.install(name, source)
        with pytest.raises(SuggestionError) as caught:
            await self.ask(algorithm, count)
        assert not self.suggestions.pids
        assert not processes_with(str(self.home))
        return str(caught.value)

    @property
    def printed(self) -> str:
        """By its algorithm so far; it comes a little later than answers do."""
        file = self.home / "tuning" / "study" / OUTPUT_FILE
        return file.read_text() if file.exists() else ""


HEAD = """
import os, subprocess, sys, time
from plugins.core.logger import logger
from plugins.core.base_plugin_opt import BasePluginOptimizer
ONE = {"rate": 0.1, "width": 16, "solver": "SGD"}
"""


def processes_with(text: str) -> list[int]:
    """Whose environment has it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and text.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@asynccontextmanager
async def laboratory(tmp_path: Path, python: str = "", user: str = "", **limits: Any) -> AsyncIterator[Lab]:
    async def user_of(_: Study) -> str:
        return user

    starter = PluginStarter(
        tmp_path,
        lambda algorithm: tmp_path / "algorithms" / algorithm.uid,
        lambda algorithm: python,
        user_of,
        PluginLimits(**{"start_pause_seconds": 0.01, **limits}),
    )
    suggestions = PluginSuggestions(starter)
    try:
        yield Lab(tmp_path, suggestions, starter)
    finally:
        await suggestions.close()
        await until(lambda: not processes_with(str(tmp_path)))


def end_all(table: Table, loss: Mapping[int, float | None] | None = None) -> None:
    for trial in table.trials:
        if trial.state is TrialState.PENDING:
            table.end(trial.number, (loss or {}).get(trial.number, float(trial.number)))


def values(answer: Answer) -> list[Mapping[str, Any]]:
    assert all(one.place == () for one in answer.suggestions)
    return [one.values or {} for one in answer.suggestions]


def search(*lines: str) -> str:
    head = ["class PluginOptimizer(BasePluginOptimizer):", "    def search(self, number_samples, last_exp_results):"]
    return "\n".join([*head, *(f"        {line}" for line in lines)])


CHILDREN = """
import subprocess, sys
for new_session in (False, True):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=new_session)
if os.fork() == 0:
    # A daemon by the book.
    os.setsid()
    if os.fork() == 0:
        time.sleep(3600)
    os._exit(0)
"""
