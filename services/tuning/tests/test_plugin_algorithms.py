"""Algorithms that users install: what they are told, what they may answer, and every way to misbehave."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import textwrap
import venv
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from thinking_room import Table, is_running, until
from tuning_service.domain.evaluation import Answer, Evaluation, Problem, TrialState
from tuning_service.domain.fields import Fields
from tuning_service.domain.parameters import read_space
from tuning_service.domain.study import Kind, Study
from tuning_service.suggestions import plugin
from tuning_service.suggestions.plugin import PluginLimits, PluginSuggestions
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

    def __init__(self, home: Path, suggestions: PluginSuggestions) -> None:
        self.home, self.suggestions = home, suggestions
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
        file = self.home / "tuning" / "study" / plugin.OUTPUT_FILE
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
async def laboratory(tmp_path: Path, python: str = "", **limits: Any) -> AsyncIterator[Lab]:
    suggestions = PluginSuggestions(
        tmp_path / "tuning",
        lambda algorithm: tmp_path / "algorithms" / algorithm.uid,
        lambda algorithm: python,
        PluginLimits(**limits),
    )
    try:
        yield Lab(tmp_path, suggestions)
    finally:
        await suggestions.close()
        await until(lambda: not processes_with(str(tmp_path)))


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path) as lab:
        yield lab


def end_all(table: Table, loss: Mapping[int, float | None] | None = None) -> None:
    for trial in table.trials:
        if trial.state is TrialState.PENDING:
            table.end(trial.number, (loss or {}).get(trial.number, float(trial.number)))


def values(answer: Answer) -> list[Mapping[str, Any]]:
    assert all(one.place == () for one in answer.suggestions)
    return [one.values or {} for one in answer.suggestions]


async def test_the_grid_goes_through_every_combination_and_ends(lab: Lab) -> None:
    grid = lab.install("Grid", PLUGINS / "grid" / "optimizer.py")
    seen = []
    while not (answer := await lab.ask(grid, 15, points="4")).is_exhausted:
        seen += values(answer)
        lab.table.add(answer)
        end_all(lab.table)
    assert len(seen) == len({tuple(one.values()) for one in seen}) == 4 * 8 * 2
    assert {one["width"] for one in seen} == set(range(8, 65, 8))
    assert all(type(one["width"]) is int and type(one["rate"]) is float for one in seen)
    assert min(one["rate"] for one in seen) == pytest.approx(0.001)
    assert "Grid: 64 combinations of rate, width, solver" in lab.printed
    # Debug lines are below its level.
    assert "DEBUG" not in lab.printed


@pytest.mark.parametrize("objective", ["minimize", "maximize"])
async def test_evolution_improves(lab: Lab, objective: str) -> None:
    evolution = lab.install("Evolution", PLUGINS / "evolution" / "optimizer.py")
    study = study_of(objective=objective)
    batches = []
    for _ in range(12):
        answer = await lab.ask(evolution, 8, study=study, RandomSeed="3")
        lab.table.add(answer)
        losses = {
            trial.number: abs(float(dict(trial.values or {})["rate"]) - 0.5)
            for trial in lab.table.trials
            if trial.state is TrialState.PENDING
        }
        batches.append(statistics.mean(losses.values()))
        end_all(lab.table, losses)
    assert statistics.mean(batches[-3:]) < batches[0] / 2


TELLING = """
import json

class PluginOptimizer(BasePluginOptimizer):
    def __init__(self, name, hyper_parameters, **kwargs):
        BasePluginOptimizer.__init__(self, name, hyper_parameters, **kwargs)
        print("made", json.dumps([name, hyper_parameters, kwargs, os.getcwd(), sys.path[0]]))
        self.count = 0

    def search(self, number_samples, last_exp_results):
        self.count += 1
        print("asked", json.dumps([number_samples, last_exp_results]))
        return [dict(ONE, width=8 * self.count) for _ in range(number_samples)]
"""


async def test_what_it_is_told(lab: Lab) -> None:
    telling = lab.install("Telling", TELLING)
    study = study_of(objective="Maximize")
    lab.table.add(await lab.ask(telling, 3, study=study, RandomSeed="7", eta="0.5"))
    lab.table.end(2, -0.75)
    # The next ones come when all of the last have ended.
    assert await lab.ask(telling, 2, study=study) == Answer([])
    lab.table.end(1, None)
    lab.table.end(3, -0.5)
    lab.table.add(await lab.ask(telling, 1, study=study))
    end_all(lab.table)
    await lab.ask(telling, 2, study=study)
    await until(lambda: lab.printed.count("asked") == 3 and lab.printed.endswith("\n"))
    lines = [line.split(" ", 1) for line in lab.printed.splitlines()]
    made = [json.loads(rest) for word, rest in lines if word == "made"]
    folder = str(lab.home / "algorithms" / "Telling")
    typed = [{**one, "dataType": word} for one, word in zip(PARAMETERS, ("DOUBLE", "INT", "STR"), strict=True)]
    assert made == [["Telling", typed, {"RandomSeed": "7", "eta": "0.5"}, folder, folder]]
    first, second, third = (json.loads(rest) for word, rest in lines if word == "asked")
    assert first == [3, []]
    assert second[0] == 2 - 1
    assert [(one["id"], one["state"], one["score"], one["loss"]) for one in second[1]] == [
        (1, "FAILED", None, None),
        (2, "FINISHED", 0.75, -0.75),
        (3, "FINISHED", 0.5, -0.5),
    ]
    parameters = {"rate": 0.1, "width": 8, "solver": "SGD"}
    for one in second[1]:
        assert one["hyperparams"] == one["hyper_params"] == one["hyperParams"] == parameters
        assert one["metric"] == one["metricVal"] == one["score"]
    assert [one["id"] for one in third[1]] == [4]


@pytest.mark.parametrize("keeps_state", [True, False])
async def test_killed_and_asked_again_it_goes_on_as_before(tmp_path: Path, keeps_state: bool) -> None:
    async def run(home: Path, *, kill: bool) -> list[Mapping[str, Any]]:
        async with laboratory(home) as lab:
            source = (PLUGINS / "evolution" / "optimizer.py").read_text()
            if not keeps_state:
                source = source.replace("def get_state", "def get_no_state")
            evolution = lab.install("Evolution", HEAD + source)
            for _ in range(6):
                lab.table.add(await lab.ask(evolution, 3, RandomSeed="3"))
                if kill:
                    await lab.suggestions.forget("study")
                    # Its answer is lost together with the service now and then.
                    if len(lab.table.trials) == 9:
                        await lab.ask(evolution, 3, RandomSeed="3")
                end_all(lab.table, {3: None})
            states = list((home / "tuning" / "study" / "plugin").glob("state-*"))
            assert len(states) == (2 if keeps_state else 0)
            return [trial.values or {} for trial in lab.table.trials]

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert await run(tmp_path / "a", kill=True) == await run(tmp_path / "b", kill=False)


async def test_an_answer_that_was_never_written_down_is_asked_for_again(lab: Lab) -> None:
    evolution = lab.install("Evolution", PLUGINS / "evolution" / "optimizer.py")
    lost = await lab.ask(evolution, 3)
    assert await lab.ask(evolution, 3) == lost
    lab.table.add(lost)
    end_all(lab.table)
    lost = await lab.ask(evolution, 2)
    assert await lab.ask(evolution, 2) == lost


async def test_a_state_that_cannot_be_used_is_played_back(lab: Lab) -> None:
    evolution = lab.install("Evolution", PLUGINS / "evolution" / "optimizer.py")
    lab.table.add(await lab.ask(evolution, 2))
    end_all(lab.table)
    lab.table.add(await lab.ask(evolution, 2))
    end_all(lab.table)
    good = await lab.ask(evolution, 2)
    await lab.suggestions.forget("study")
    for state in (lab.home / "tuning" / "study" / "plugin").glob("state-*"):
        state.write_bytes(b"no pickle")
    assert await lab.ask(evolution, 2) == good
    await until(lambda: "UnpicklingError" in lab.printed)


async def test_it_may_be_killed_in_the_middle_of_an_ask(lab: Lab) -> None:
    slow = lab.install(
        "Slow",
        """
        class PluginOptimizer(BasePluginOptimizer):
            def search(self, number_samples, last_exp_results):
                mark = os.path.join(os.environ["HOME"], "begun")
                if not os.path.exists(mark):
                    open(mark, "w").write(str(os.getpid()))
                    time.sleep(3600)
                return [ONE]
        """,
    )
    ask = asyncio.create_task(lab.ask(slow))
    mark = lab.home / "tuning" / "study" / "plugin" / "begun"
    await until(lambda: mark.exists() and bool(mark.read_text()))
    os.kill(int(mark.read_text()), signal.SIGKILL)
    assert values(await ask) == [{"rate": 0.1, "width": 16, "solver": "SGD"}]


async def test_an_error_says_where_it_was_raised(lab: Lab) -> None:
    message = await lab.fails(
        """
        def divide(a, b):
            return a / b

        class PluginOptimizer(BasePluginOptimizer):
            def search(self, number_samples, last_exp_results):
                return divide(1, 0)
        """
    )
    assert message == (
        "algorithm bad: search() raised ZeroDivisionError: division by zero (optimizer.py, line 8, in divide)"
    )
    assert "Traceback" in lab.printed


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("class Optimizer: pass", "raised AttributeError: optimizer.py has no class PluginOptimizer"),
        (
            "import nothing_of_that_name",
            "raised ModuleNotFoundError: No module named 'nothing_of_that_name' (optimizer.py",
        ),
        ("def broken(:", "raised SyntaxError"),
        ("sys.exit(3)", "importing and making it raised SystemExit: 3 (optimizer.py, line 7, in <module>)"),
        ("class PluginOptimizer(BasePluginOptimizer): pass", "raised NotImplementedError"),
        (
            "class PluginOptimizer(BasePluginOptimizer):\n    def __init__(self): pass",
            "importing and making it raised TypeError",
        ),
    ],
)
async def test_what_is_no_algorithm(lab: Lab, source: str, expected: str) -> None:
    assert expected in await lab.fails("\n" + source)


def search(*lines: str) -> str:
    head = ["class PluginOptimizer(BasePluginOptimizer):", "    def search(self, number_samples, last_exp_results):"]
    return "\n".join([*head, *(f"        {line}" for line in lines)])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("5", "search() returned int, not a list of {parameter: value}"),
        ("'text'", "search() returned str, not a list"),
        ("ONE", "search() returned dict, not a list"),
        ("[5]", "search() returned a list whose item 0 is no dict but int"),
        ("[dict(ONE, rate=object())]", "search() returned object for rate, not a number or a text"),
        ("[dict(ONE, rate=[0.1])]", "search() returned list for rate"),
        ("[dict(ONE, depth=3)]", "search() returned a parameter 'depth'; there are rate, width, solver"),
        ("[{'rate': 0.1, 'width': 8}]", "search() returned no value for solver in item 0"),
        ("[dict(ONE, width=8.5)]", "search() returned '8.5' for width, which is to be a whole number"),
        ("[dict(ONE, width=True)]", "for width, which is to be a whole number"),
        ("[dict(ONE, width='8')]", "for width, which is to be a whole number"),
        ("[dict(ONE, width=72)]", "search() returned 72 for width, which lies from 8 to 64"),
        ("[dict(ONE, width=10**400)]", "for width, which is to be a whole number"),
        ("[dict(ONE, rate=1.5)]", "search() returned 1.5 for rate, which lies from 0.001 to 1"),
        ("[dict(ONE, rate=float('nan'))]", "for rate, which is to be a finite number"),
        ("[dict(ONE, rate=None)]", "for rate, which is to be a finite number"),
        ("[dict(ONE, solver='Adagrad')]", "search() returned 'Adagrad' for solver, which is none of its values"),
        ("[dict(ONE, solver=3)]", "for solver, which is to be a text"),
        ("[dict(ONE, solver='x' * 10**7)]", "search() returned more than 4194304 characters"),
    ],
)
async def test_junk(lab: Lab, answer: str, expected: str) -> None:
    assert expected in await lab.fails(search(f"return {answer}"))


async def test_values_off_the_grid_are_the_algorithms_own_business(lab: Lab) -> None:
    algorithm = lab.install("Off", search("return [dict(ONE, width=9.0, rate=1)] * 3"))
    # More than were asked for are left out.
    answer = values(await lab.ask(algorithm, 2))
    assert answer == [{"rate": 1.0, "width": 9, "solver": "SGD"}] * 2
    assert type(answer[0]["width"]) is int
    assert type(answer[0]["rate"]) is float


async def test_numbers_of_libraries(lab: Lab) -> None:
    algorithm = lab.install(
        "Numpy", "import numpy\n" + search("return [dict(ONE, width=numpy.int64(24), rate=numpy.float32(0.5))]")
    )
    assert values(await lab.ask(algorithm)) == [{"rate": 0.5, "width": 24, "solver": "SGD"}]


async def test_fixed_parameters_may_be_named(lab: Lab) -> None:
    fixed = {"name": "depth", "type": "Fix", "dataType": "int", "fixedVal": 3}
    study = study_of(parameters=[*PARAMETERS, fixed])
    same = lab.install("Same", search("return [dict(ONE, depth=3)]"))
    assert values(await lab.ask(same, study=study)) == [{"rate": 0.1, "width": 16, "solver": "SGD"}]
    other = lab.install("Other", search("return [dict(ONE, depth=4)]"))
    with pytest.raises(SuggestionError, match=r"search\(\) returned 4 for depth, which is always 3"):
        await lab.ask(other, study=replace(study, uid="another"))


@pytest.mark.parametrize("answer", ["None", "[]", "()"])
async def test_nothing_is_the_end(lab: Lab, answer: str) -> None:
    algorithm = lab.install("Empty", search(f"return {answer}"))
    assert await lab.ask(algorithm) == Answer([], is_exhausted=True)


async def test_leaving(lab: Lab) -> None:
    message = await lab.fails(search("print('see you')", "os._exit(3)"))
    assert message == "algorithm bad: its process ended itself with exit code 3; it printed last: see you"


async def test_crashing(lab: Lab) -> None:
    message = await lab.fails(search("os.kill(os.getpid(), 11)"))
    assert message == "algorithm bad: its process was ended by SIGSEGV"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["while True:", "    number_samples += 1"], " (optimizer.py, line 11, in search)"),
        (["for one in (1, 2, 15): signal.signal(one, signal.SIG_IGN)", "time.sleep(3600)"], " (optimizer.py, line "),
        (["signal.raise_signal(signal.SIGSTOP)"], ""),
    ],
)
async def test_taking_too_long(lab: Lab, lines: list[str], expected: str) -> None:
    slow = lab.install("Slow", "import signal\n" + search("if not last_exp_results: return [ONE]", *lines))
    lab.table.add(await lab.ask(slow))
    end_all(lab.table)
    # From now on: to start a process may take its time.
    lab.suggestions._limits = PluginLimits(ask_seconds=4.0)
    with pytest.raises(SuggestionError) as caught:
        await lab.ask(slow)
    assert str(caught.value).startswith(f"algorithm Slow: search() took longer than 4 s{expected}")
    assert not processes_with(str(lab.home))


async def test_eating_memory(tmp_path: Path) -> None:
    async with laboratory(tmp_path, memory_bytes=512 * 1024**2) as lab:
        message = await lab.fails(search("bytearray(2 * 1024**3)"))
    assert "search() raised MemoryError: it needs more memory than it may have (optimizer.py, line" in message


async def test_writing_a_file_without_end(tmp_path: Path) -> None:
    async with laboratory(tmp_path, file_bytes=1024**2) as lab:
        message = await lab.fails(
            search("file = open(os.environ['HOME'] + '/x', 'wb')", "while True: file.write(b'x' * 4096)")
        )
    assert "raised OSError: [Errno 27] File too large" in message


async def test_printing_megabytes(lab: Lab) -> None:
    lines = ["for _ in range(80): print('x' * 100_000)", "os.write(2, b'\\xff' * 3_000_000)", "print('the last line')"]
    loud = lab.install("Loud", search(*lines, "return [ONE]"))
    assert values(await lab.ask(loud)) == [{"rate": 0.1, "width": 16, "solver": "SGD"}]
    folder = lab.home / "tuning" / "study"
    await until(lambda: any(b"the last line" in file.read_bytes() for file in folder.glob("plugin.log*")))
    assert sum(file.stat().st_size for file in folder.glob("plugin.log*")) < 3 * 1024**2


async def test_writing_where_answers_go(lab: Lab) -> None:
    """Its own answers, which are read with care."""
    lines = ["for one in range(3, 20):", "    try: os.write(one, b'nonsense\\n')", "    except OSError: pass"]
    assert "its process answered with something that is no JSON" in await lab.fails(search(*lines, "return [ONE]"))


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


async def test_children_end_with_it(lab: Lab) -> None:
    with_children = lab.install("Parent", CHILDREN + search("return [ONE]"))
    await lab.ask(with_children)
    await until(lambda: len(processes_with(str(lab.home))) == 5)
    await lab.suggestions.forget("study")
    assert not processes_with(str(lab.home))


async def test_children_end_with_it_when_it_fails(lab: Lab) -> None:
    await lab.fails(CHILDREN + search("raise ValueError"))


SERVICE = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_plugin_algorithms import *

async def main():
    home = Path(sys.argv[2])
    async with laboratory(home) as lab:
        busy = search("open(os.environ['HOME'] + '/begun', 'w')", "time.sleep(3600)")
        asking = asyncio.create_task(lab.ask(lab.install("Parent", CHILDREN + busy)))
        await until((home / "tuning" / "study" / "plugin" / "begun").exists)
        print("ready", flush=True)
        await asking

asyncio.run(main())
"""


async def test_nothing_outlives_a_service_that_is_killed(tmp_path: Path) -> None:
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", SERVICE, str(Path(__file__).parent), str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert service.stdout is not None
        assert await service.stdout.readline() == b"ready\n"
        await until(lambda: len(processes_with(str(tmp_path))) == 5)
    finally:
        service.kill()
        await service.communicate()
    await until(lambda: not processes_with(str(tmp_path)))


async def test_it_sees_nothing_of_the_platforms_secrets(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLMESH_DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("PGPASSWORD", "secret")
    telling = lab.install("Telling", search("print(sorted(os.environ.items()))", "return [ONE]"))
    await lab.ask(telling)
    await until(lambda: "'HOME'" in lab.printed and lab.printed.endswith("\n"))
    assert "secret" not in lab.printed


async def test_studies_do_not_disturb_each_other(lab: Lab) -> None:
    hanging = lab.install("Hanging", search("open(os.environ['HOME'] + '/begun', 'w')", "time.sleep(3600)"))
    grid = lab.install("Grid", PLUGINS / "grid" / "optimizer.py")
    failing = asyncio.create_task(lab.ask(hanging, study=study_of("hanging")))
    await until((lab.home / "tuning" / "hanging" / "plugin" / "begun").exists)
    for number in range(3):
        assert (await lab.ask(grid, study=study_of(f"study {number}"))).suggestions
    assert not failing.done()
    failing.cancel()
    await asyncio.wait({failing})
    assert "hanging" not in lab.suggestions.pids
    # Two studies of one algorithm are two objects.
    assert values(await lab.ask(grid, study=study_of("a"))) == values(await lab.ask(grid, study=study_of("b")))


async def test_one_that_is_not_asked_ends_and_goes_on(tmp_path: Path) -> None:
    async with laboratory(tmp_path, idle_seconds=0.01) as lab:
        grid = lab.install("Grid", PLUGINS / "grid" / "optimizer.py")
        first = await lab.ask(grid, 2)
        lab.table.add(first)
        await until(lambda: not lab.suggestions.pids)
        end_all(lab.table)
        second = values(await lab.ask(grid, 2))
        assert not any(one in values(first) for one in second)


async def test_asked_in_the_moment_in_which_it_ends(lab: Lab) -> None:
    grid = lab.install("Grid", PLUGINS / "grid" / "optimizer.py")
    lab.table.add(await lab.ask(grid, 2))
    end_all(lab.table)
    (pid,) = lab.suggestions.pids.values()
    lab.suggestions._hosts["study"].ending.cancel()  # type: ignore[union-attr]
    lab.suggestions._end_idle("study")
    assert (await lab.ask(grid, 2)).suggestions
    assert lab.suggestions.pids["study"] != pid
    await until(lambda: not is_running(pid))


async def test_only_so_many_run_at_a_time(tmp_path: Path) -> None:
    async with laboratory(tmp_path, processes=2) as lab:
        grid = lab.install("Grid", PLUGINS / "grid" / "optimizer.py")
        for uid in ("a", "b", "c"):
            await lab.ask(grid, study=study_of(uid))
        assert set(lab.suggestions.pids) == {"b", "c"}


async def test_another_interpreter(tmp_path: Path) -> None:
    await asyncio.to_thread(venv.create, tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    async with laboratory(tmp_path, python=str(python)) as lab:
        # What the platform's own has is not there.
        which = lab.install("Which", search("print(sys.prefix)", "import numpy", "return [ONE]"))
        with pytest.raises(SuggestionError, match="No module named 'numpy'"):
            await lab.ask(which)
        assert str(tmp_path / "env") in lab.printed


def test_the_host_runs_in_old_interpreters() -> None:
    source = plugin.HOST.read_text()
    ast.parse(source, feature_version=(3, 6))
    # Nothing beside the standard library.
    output = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            "import sys; exec(open(sys.argv[1]).read(), {'__name__': 'x'})",
            plugin.HOST,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (output.returncode, output.stderr) == (0, "")


async def test_trials_of_others_are_none_of_its_business(lab: Lab) -> None:
    lab.table.add(Answer([]))
    lab.table.trials.append(Evaluation(1, (), TrialState.FINISHED, (0.5,), {}, {"rate": 0.5}))
    lab.table._changes.append(1)
    grid = lab.install("Grid", PLUGINS / "grid" / "optimizer.py")
    lab.table.add(await lab.ask(grid, 2))
    assert [trial.notes.get("ask") for trial in lab.table.trials] == [None, 1, 1]
    end_all(lab.table)
    assert (await lab.ask(grid, 2)).suggestions[0].notes == {"ask": 2, "asked": 2}
