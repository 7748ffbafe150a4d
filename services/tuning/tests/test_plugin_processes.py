"""The processes of algorithms that users install: how many there are, when they end, and what a new one is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from plugin_room import PLUGINS, Lab, end_all, laboratory, problem_of, processes_with, search, study_of, values
from thinking_room import Table, is_running, until
from tuning_service.usecases.ports import SuggestionError

GRID, EVOLUTION = PLUGINS / "grid" / "optimizer.py", PLUGINS / "evolution" / "optimizer.py"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path) as lab:
        yield lab


async def test_one_that_is_not_asked_ends_and_goes_on(tmp_path: Path) -> None:
    async with laboratory(tmp_path, idle_seconds=0.01) as lab:
        evolution = lab.install("Evolution", EVOLUTION)
        lab.table.add(await lab.ask(evolution, 2))
        await until(lambda: not lab.suggestions.pids)
        await until(lambda: not processes_with(str(tmp_path)))
        end_all(lab.table)
        assert len((await lab.ask(evolution, 2)).suggestions) == 2


async def test_one_that_would_have_to_search_again_stays(tmp_path: Path) -> None:
    async with laboratory(tmp_path, idle_seconds=0.0) as lab:
        grid = lab.install("Grid", GRID)
        lab.table.add(await lab.ask(grid, 2))
        (pid,) = lab.suggestions.pids.values()
        # With a state it would be gone by now.
        evolution = lab.install("Evolution", EVOLUTION)
        other = study_of("other")
        await lab.suggestions.ask(other, evolution, problem_of(other), Table(), 2)
        await until(lambda: "other" not in lab.suggestions.pids)
        end_all(lab.table)
        await lab.ask(grid, 2)
        assert list(lab.suggestions.pids.values()) == [pid]


async def test_asked_in_the_moment_in_which_it_ends(lab: Lab) -> None:
    evolution = lab.install("Evolution", EVOLUTION)
    lab.table.add(await lab.ask(evolution, 2))
    end_all(lab.table)
    (pid,) = lab.suggestions.pids.values()
    lab.suggestions._hosts["study"].ending.cancel()  # type: ignore[union-attr]
    lab.suggestions._end_idle("study")
    assert (await lab.ask(evolution, 2)).suggestions
    assert lab.suggestions.pids["study"] != pid
    await until(lambda: not is_running(pid))


async def test_who_was_asked_longest_ago_makes_room(tmp_path: Path) -> None:
    async with laboratory(tmp_path, processes=2) as lab:
        grid = lab.install("Grid", GRID)
        for uid in ("a", "b", "c"):
            await lab.ask(grid, study=study_of(uid))
        assert set(lab.suggestions.pids) == {"b", "c"}


async def test_who_has_a_state_makes_room_first(tmp_path: Path) -> None:
    async with laboratory(tmp_path, processes=2) as lab:
        grid, evolution = lab.install("Grid", GRID), lab.install("Evolution", EVOLUTION)
        await lab.ask(grid, study=study_of("a"))
        await lab.ask(evolution, study=study_of("b"))
        await lab.ask(grid, study=study_of("c"))
        assert set(lab.suggestions.pids) == {"a", "c"}


WAITING = search(
    "home = os.environ['HOME']",
    "open(home + '/begun', 'w').close()",
    "while not os.path.exists(home + '/go'): time.sleep(0.01)",
    "return [ONE]",
)


def folder_of(lab: Lab, uid: str) -> Path:
    return lab.home / "tuning" / uid / "plugin"


async def test_only_so_many_are_asked_at_a_time(tmp_path: Path) -> None:
    uids = {"a", "b", "c", "d", "e"}
    async with laboratory(tmp_path, processes=2) as lab:
        waiting = lab.install("Waiting", WAITING)
        asks = {uid: asyncio.create_task(lab.ask(waiting, study=study_of(uid))) for uid in sorted(uids)}
        answered: set[str] = set()
        while answered != uids:

            def begun(done: frozenset[str] = frozenset(answered)) -> set[str]:
                return {uid for uid in uids - done if (folder_of(lab, uid) / "begun").exists()}

            open_ones = min(2, len(uids - answered))
            await until(lambda: len(begun()) == open_ones)  # noqa: B023
            others = uids - answered - begun()
            await until(lambda: all("2 others are being asked" in lab.suggestions.doing(uid) for uid in others))  # noqa: B023
            assert len(lab.suggestions.pids) <= 2
            assert len(begun()) == open_ones
            uid = min(begun())
            (folder_of(lab, uid) / "go").touch()
            assert values(await asks[uid]) == [{"rate": 0.1, "width": 16, "solver": "SGD"}]
            answered.add(uid)


async def test_whoever_gives_up_waiting_takes_no_place(tmp_path: Path) -> None:
    async with laboratory(tmp_path, processes=1) as lab:
        waiting = lab.install("Waiting", WAITING)
        first = asyncio.create_task(lab.ask(waiting, study=study_of("first")))
        await until((folder_of(lab, "first") / "begun").exists)
        second = asyncio.create_task(lab.ask(waiting, study=study_of("second")))
        await until(lambda: bool(lab.suggestions.doing("second")))
        for ask in (second, first):
            ask.cancel()
            await asyncio.wait({ask})
        grid = lab.install("Grid", GRID)
        # One that cannot be used takes none either.
        with pytest.raises(SuggestionError):
            await lab.ask(lab.install("Bad", "raise ValueError"), study=study_of("bad"))
        assert (await lab.ask(grid)).suggestions
        assert list(lab.suggestions.pids) == ["study"]


def again(line: str) -> str:
    """An algorithm without a state that does something once there is a file `slow`."""
    return search(
        "home = os.environ['HOME']",
        "open(home + '/searches', 'a').write('x')",
        line,
        "return [dict(ONE, rate=1 / (1 + os.path.getsize(home + '/searches')))]",
    )


async def ask_often(lab: Lab, often: int, line: str) -> None:
    """Its process is gone then, and it is slow."""
    algorithm = lab.install("Before", again(line))
    for _ in range(often):
        lab.table.add(await lab.ask(algorithm))
        end_all(lab.table)
    await lab.suggestions.forget("study")
    (folder_of(lab, "study") / "slow").touch()


@pytest.mark.slow
async def test_to_bring_a_process_up_to_date_has_one_limit_in_all(tmp_path: Path) -> None:
    line = "if os.path.exists(home + '/slow'): time.sleep(0.5)"
    async with laboratory(tmp_path, catch_up_seconds=1.2) as lab:
        await ask_often(lab, 6, line)
        algorithm = lab.install("Again", again(line))
        with pytest.raises(SuggestionError) as caught:
            await lab.ask(algorithm)
        assert str(caught.value).startswith("algorithm Again: it could not be brought up to date within 1.2 s: search ")
        assert "of 6 again, for its process is a new one" in str(caught.value)
        assert "get_state() and set_state()" in str(caught.value)
        # Not all of them, each of which is quick enough.
        assert len((folder_of(lab, "study") / "searches").read_text()) < 6 + 6
        assert not processes_with(str(tmp_path))


async def test_it_says_that_a_process_is_being_brought_up_to_date(lab: Lab) -> None:
    line = "while os.path.exists(home + '/slow'): time.sleep(0.01)"
    await ask_often(lab, 2, line)
    ask = asyncio.create_task(lab.ask(lab.install("Again", again(line))))
    text = "its algorithm is being brought up to date: search 1 of 2 again"
    await until(lambda: lab.suggestions.doing("study").startswith(text))
    (folder_of(lab, "study") / "slow").unlink()
    assert (await ask).suggestions
    assert lab.suggestions.doing("study") == ""


PYTHONS = {
    "nothing": (None, "No such file or directory"),
    "no_program": ("text", "Permission denied"),
    "no_shell": ("#!/nowhere/python\n", "No such file or directory"),
    "leaving": (
        "#!/bin/sh\necho tried >> $HOME/tries\necho no libpython >&2\nexit 3\n",
        "with exit code 3; it",
    ),
    "killed": ("#!/bin/sh\nkill -ILL $$\n", "ended itself with exit code 132"),
    "loud": ("#!/bin/sh\necho Welcome\nsleep 3600\n", "answered with something that is no JSON"),
}


@pytest.mark.parametrize("name", PYTHONS)
async def test_an_interpreter_that_does_not_come_up_fails_its_study(tmp_path: Path, name: str) -> None:
    source, expected = PYTHONS[name]
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    if source is not None:
        python.write_text(source)
        python.chmod(0o644 if name == "no_program" else 0o755)
    async with laboratory(tmp_path, python=str(python), processes=1) as lab:
        message = await lab.fails(search("return [ONE]"))
        assert message.startswith("algorithm bad: its process does not come up: ")
        assert expected in message
        assert str(python) in message
        if name == "nothing":
            # It takes no place.
            assert "does not come up" in await lab.fails(search("return [ONE]"), name="another")
        if name == "leaving":
            assert "no libpython" in message
            assert (folder_of(lab, "study") / "tries").read_text().split() == ["tried"] * 3


async def test_an_interpreter_that_is_busy_now_is_tried_again_by_the_study(tmp_path: Path) -> None:
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {os.path.realpath("/proc/self/exe")} "$@"\n')
    python.chmod(0o755)
    async with laboratory(tmp_path, python=str(python)) as lab:
        grid = lab.install("Grid", GRID)
        # While somebody writes a program the kernel executes none of it.
        with python.open("a"):
            with pytest.raises(OSError, match=r"cannot be started now: .*Text file busy"):
                await lab.ask(grid)
        assert (await lab.ask(grid)).suggestions


async def test_a_crash_at_an_import_says_so(lab: Lab) -> None:
    message = await lab.fails("import signal\nsignal.raise_signal(signal.SIGILL)")
    assert message == "algorithm bad: its process was ended by SIGILL"
