"""Algorithms that users install: every way to misbehave."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from plugin_room import (
    CHILDREN,
    PARAMETERS,
    Lab,
    end_all,
    laboratory,
    processes_with,
    search,
    study_of,
    values,
)
from thinking_room import until
from tuning_service.domain.evaluation import Answer
from tuning_service.suggestions.plugin_process import PluginLimits
from tuning_service.usecases.ports import SuggestionError


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path) as lab:
        yield lab


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
    lab.starter.limits = PluginLimits(ask_seconds=4.0)
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


@pytest.mark.slow
async def test_filling_its_folder(tmp_path: Path) -> None:
    async with laboratory(tmp_path, folder_bytes=4 * 1024**2) as lab:
        lines = ["for one in range(8): open(str(one), 'wb').write(os.urandom(1024**2))", "time.sleep(3600)"]
        message = await lab.fails(search(*lines))
    assert message == "algorithm bad: search() was ended: its folder held 8 MiB, allowed are 4 MiB"
    # Another search is not in the way of it.
    assert not (tmp_path / "tuning" / "study" / "plugin").exists()


async def test_more_than_an_answer_holds_is_not_asked_for(lab: Lab) -> None:
    names = [f"parameter {number:04}" for number in range(1000)]
    one = {"type": "Range", "dataType": "DOUBLE", "minDbVal": 1e-300, "maxDbVal": 1}
    study = study_of(parameters=[{"name": name, **one} for name in names])
    wide = lab.install("Wide", search(f"return [dict.fromkeys({names}, 1.2345678901234567e-100)] * number_samples"))
    lab.table.add(await lab.ask(wide, 1000, study=study))
    first = len(lab.table.trials)
    assert 10 < first < 1000
    end_all(lab.table)
    assert len((await lab.ask(wide, 1000, study=study)).suggestions) == first


async def test_printing_megabytes(lab: Lab) -> None:
    lines = ["for _ in range(80): print('x' * 100_000)", "os.write(2, b'\\xff' * 3_000_000)", "print('the last line')"]
    loud = lab.install("Loud", search(*lines, "return [ONE]"))
    assert values(await lab.ask(loud)) == [{"rate": 0.1, "width": 16, "solver": "SGD"}]
    folder = lab.home / "tuning" / "study"
    await until(lambda: any("the last line" in content_of(file) for file in folder.glob("plugin.log*")))
    assert sum(file.stat().st_size for file in folder.glob("plugin.log*")) < 3 * 1024**2


def content_of(file: Path) -> str:
    """Empty when it has just got another name."""
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return ""


async def test_writing_where_answers_go(lab: Lab) -> None:
    """Its own answers, which are read with care."""
    lines = ["for one in range(3, 20):", "    try: os.write(one, b'nonsense\\n')", "    except OSError: pass"]
    assert "its process answered with something that is no JSON" in await lab.fails(search(*lines, "return [ONE]"))


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
from plugin_room import *

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
