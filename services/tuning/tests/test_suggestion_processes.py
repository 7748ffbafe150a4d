"""Processes that think: what is asked of them, and what becomes of studies when they die, hang or talk too much."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from thinking_room import HYPERBAND, ODD, PATIENCE_SECONDS, PROBLEM, Table, is_running, thinking, until
from tuning_service.algorithms.registry import ALGORITHMS, make_algorithm, read_settings
from tuning_service.domain.evaluation import Answer, Evaluation, Problem, Suggestion, TrialState
from tuning_service.domain.problem_form import evaluation_form, problem_form, read_answer
from tuning_service.domain.space import Continuous, Space
from tuning_service.suggestions.built_in import LOGGED_LINES
from tuning_service.usecases.ports import SuggestionError
from tuning_service.worker.suggest import Thinker


async def test_a_whole_study_is_as_the_algorithm_would_have_it() -> None:
    table = Table()
    async with thinking() as suggestions:
        while True:
            expected = make_algorithm("Hyperband", PROBLEM).ask(tuple(table.trials), 3)
            assert await suggestions.ask("study", "Hyperband", PROBLEM, table, 3) == expected
            if expected.is_exhausted:
                break
            table.add(expected)
            for trial in table.trials:
                if trial.state is TrialState.PENDING:
                    table.end(trial.number, float(trial.place[0]) if trial.number % 7 else None)
        assert len(suggestions.pids) == 1
    assert len(table.trials) == 69
    # Only what changed is told; what ended in between is told again.
    assert max(table.read) <= 3


@pytest.mark.parametrize("page", [4, 10])
async def test_a_process_made_anew_is_told_page_by_page(page: int) -> None:
    table = Table()
    problem = replace(PROBLEM, settings=read_settings(ALGORITHMS["TPE"], {"WarmUp": "3"}))
    for _ in range(8):
        table.add(make_algorithm("TPE", problem).ask(tuple(table.trials), 3))
    for number in (5, 3, 20, 11, 2):
        table.end(number, number / 10)
    table.page, table.read = page, []
    async with thinking() as suggestions:
        expected = make_algorithm("TPE", problem).ask(tuple(table.trials), 2)
        assert await suggestions.ask("study", "TPE", problem, table, 2) == expected
    assert len(table.read) > 2
    assert max(table.read) <= page


async def test_what_changed_is_merged_with_what_is_known() -> None:
    table = Table()
    async with thinking(command=ODD) as suggestions:

        async def told(problem: Problem = PROBLEM, study: str = "a") -> dict[str, Any]:
            (one,) = (await suggestions.ask(study, "Telling", problem, table, 1)).suggestions
            return dict(one.notes)

        assert await told() == {"asks": 1, "trials": [], "most": 69, "pid": suggestions.pids[0]}
        for _ in range(3):
            table.add(Answer((await suggestions.ask("a", "Telling", PROBLEM, table, 1)).suggestions))
        table.end(2, 0.5)
        table.end(1, None)
        known = await told()
        # While there was no trial there was nothing to be kept for.
        assert known["asks"] == 3
        assert known["trials"] == [[1, "FAILED", None], [2, "FINISHED", [0.5]], [3, "PENDING", None]]
        # A bigger budget is another problem: a new object, which knows the trials all the same.
        known = await told(replace(PROBLEM, max_trials=100))
        assert (known["asks"], known["most"], len(known["trials"])) == (1, 100, 3)
        assert len(suggestions.pids) == 1


def test_as_many_studies_are_remembered_as_have_room() -> None:
    wide = replace(PROBLEM, space=Space((Continuous("rate", 0.0, 1.0),) * 80))
    trials = [evaluation_form(Evaluation(number, (0.5,) * 2, TrialState.PENDING)) for number in range(1, 10)]

    def ask(thinker: Thinker, uid: str, since: int, problem: Problem = PROBLEM) -> dict[str, Any]:
        told = {"since": since, "until": 1, "trials": [] if since else trials, "count": 0}
        return thinker.answer({"study": uid, "algorithm": "Random", "problem": problem_form(problem), **told})

    # Ten trials of two dimensions with 20 numbers beside them each are 220, of 80 dimensions 1,000.
    thinker = Thinker(kept_numbers=20 * 220)
    for number in range(20):
        assert "need" not in ask(thinker, f"study {number}", 0)
    assert "need" not in ask(thinker, "study 0", 1)
    ask(thinker, "wide", 0, replace(wide, settings={}))
    # The five that were asked longest ago made room.
    assert [ask(thinker, f"study {number}", 1) for number in (1, 5)] == [{"need": "all"}] * 2
    assert [ask(thinker, f"study {number}", 1) for number in (0, 6, 19)] == [
        {"suggestions": [], "exhausted": False}
    ] * 3
    # One has room in any case.
    thinker = Thinker(kept_numbers=10)
    ask(thinker, "study", 0)
    assert "need" not in ask(thinker, "study", 1)


async def test_more_than_an_answer_holds_is_not_asked_for() -> None:
    space = Space(tuple(Continuous(f"p{number}", 0.0, 1.0) for number in range(1000)))
    async with thinking() as suggestions:
        problem = replace(PROBLEM, space=space, settings=read_settings(ALGORITHMS["Random"], {}), max_trials=1000)
        answer = await suggestions.ask("study", "Random", problem, Table(), 1000)
        assert 10 < len(answer.suggestions) < 1000
        assert not answer.is_exhausted


async def test_killed_in_the_middle_of_an_ask() -> None:
    table = Table()
    async with thinking() as suggestions:
        table.add(await suggestions.ask("study", "Hyperband", PROBLEM, table, 4))
        table.end(2, 0.1)
        (pid,) = suggestions.pids
        # It does not come to an answer, however quick it is.
        os.kill(pid, signal.SIGSTOP)
        ask = asyncio.create_task(suggestions.ask("study", "Hyperband", PROBLEM, table, 2))
        await until(lambda: len(table.read) == 2)
        os.kill(pid, signal.SIGKILL)
        assert await ask == make_algorithm("Hyperband", PROBLEM).ask(tuple(table.trials), 2)
        assert suggestions.pids != [pid]


async def test_an_ask_that_kills_its_process_twice_fails_the_study() -> None:
    async with thinking(command=ODD) as suggestions:
        with pytest.raises(
            SuggestionError, match=r"algorithm Leaving: its process ended itself with exit code 7, twice"
        ):
            await suggestions.ask("study", "Leaving", PROBLEM, Table(), 1)
        # Others go on.
        assert await suggestions.ask("other", "Hyperband", PROBLEM, Table(), 1)


async def test_a_long_ask_holds_up_nobody() -> None:
    table = Table()
    async with thinking() as suggestions:
        await suggestions.ask("slow", "Hyperband", PROBLEM, table, 1)
        (pid,) = suggestions.pids
        os.kill(pid, signal.SIGSTOP)
        slow = asyncio.create_task(suggestions.ask("slow", "Hyperband", PROBLEM, table, 1))
        await until(lambda: len(table.read) == 2)
        for study in ("quick", "quicker", "quick"):
            assert (await suggestions.ask(study, "Hyperband", PROBLEM, Table(), 1)).suggestions
        assert len(suggestions.pids) == 2
        assert not slow.done()
        os.kill(pid, signal.SIGCONT)
        assert (await slow).suggestions


async def test_an_ask_that_takes_too_long_ends_with_its_process() -> None:
    async with thinking(command=ODD, ask_seconds=0.2) as suggestions:
        with pytest.raises(SuggestionError, match=r"^algorithm Hanging did not answer within 0.2 s, twice$"):
            await suggestions.ask("study", "Hanging", PROBLEM, Table(), 1)
        assert not suggestions.pids


async def test_an_ask_that_was_slow_once_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table()
    async with thinking() as suggestions:
        table.add(await suggestions.ask("study", "Hyperband", PROBLEM, table, 4))
        (pid,) = suggestions.pids
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(suggestions, "_ask_seconds", 0.2)
        ask = asyncio.create_task(suggestions.ask("study", "Hyperband", PROBLEM, table, 2))
        await until(lambda: len(table.read) == 2)
        # Of that ask only.
        monkeypatch.setattr(suggestions, "_ask_seconds", PATIENCE_SECONDS)
        answer = await ask
        assert answer == make_algorithm("Hyperband", PROBLEM).ask(tuple(table.trials), 2)
        assert suggestions.pids != [pid]


@pytest.mark.parametrize("name", ["TPE", "Bayesian", "Nevergrad"])
def test_what_takes_long_is_answered_in_parts(name: str) -> None:
    settings = {"TPE": {"WarmUp": "3"}, "Bayesian": {"InitPoints": "3", "CubeSize": "50"}, "Nevergrad": {}}[name]
    problem = replace(PROBLEM, settings=read_settings(ALGORITHMS[name], settings), parallel=6)
    table = Table()
    table.add(make_algorithm(name, problem).ask((), 4))
    for number in (1, 2, 3):
        table.end(number, number / 10)
    whole = make_algorithm(name, problem).ask(tuple(table.trials), 6)
    thinker, parts = Thinker(thinking_seconds=0.0), list[Suggestion]()
    for since in range(6):
        trials = table.trials if since == 0 else table.trials[-1:]
        told = {"since": since, "until": since + 1, "trials": [evaluation_form(trial) for trial in trials]}
        ask = {"study": "study", "algorithm": name, "problem": problem_form(problem), "count": 6 - since, **told}
        part = read_answer(thinker.answer(ask))
        assert (len(part.suggestions), part.is_exhausted) == (1, False)
        table.add(part)
        parts += part.suggestions
    assert parts == list(whole.suggestions)


async def test_many_studies_at_once_share_the_processes() -> None:
    async with thinking() as suggestions:
        tables = [Table() for _ in range(12)]
        answers = await asyncio.gather(
            *(suggestions.ask(f"study {n}", "Hyperband", PROBLEM, table, 2) for n, table in enumerate(tables))
        )
        assert len({repr(answer) for answer in answers}) == 1
        assert len(suggestions.pids) == 2


async def test_an_ask_that_nobody_waits_for_spoils_nothing() -> None:
    table = Table()
    async with thinking(command=ODD, processes=1) as suggestions:
        table.add(await suggestions.ask("study", "Telling", PROBLEM, table, 1))
        await suggestions.ask("study", "Telling", PROBLEM, table, 1)
        (pid,) = suggestions.pids
        os.kill(pid, signal.SIGSTOP)
        given_up = asyncio.create_task(suggestions.ask("study", "Telling", PROBLEM, table, 1))
        await until(lambda: len(table.read) == 3)
        given_up.cancel()
        await asyncio.wait({given_up})
        os.kill(pid, signal.SIGCONT)
        # Not the other one's answer: its own, after that.
        (one,) = (await suggestions.ask("study", "Telling", PROBLEM, table, 1)).suggestions
        assert (one.notes["pid"], one.notes["asks"]) == (pid, 3)


async def test_what_libraries_print_is_logged_and_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with thinking(command=ODD) as suggestions:
        answer = await suggestions.ask("study", "Loud", PROBLEM, Table(), 1)
        assert [one.place for one in answer.suggestions] == [(0,)]
        await until(lambda: "from a child" in caplog.text)
        for _ in range(10):
            await suggestions.ask("study", "Loud", PROBLEM, Table(), 1)
    assert caplog.text.count("no JSON at all") <= 11 * LOGGED_LINES


async def test_errors_fail_the_study_with_their_text() -> None:
    async with thinking(command=ODD, memory_bytes=1024**3) as suggestions:
        with pytest.raises(SuggestionError, match=r"^algorithm Raising: ZeroDivisionError: nothing to divide by$"):
            await suggestions.ask("study", "Raising", PROBLEM, Table(), 1)
        with pytest.raises(SuggestionError, match=r"^algorithm Eating: it needs more memory than it may have$"):
            await suggestions.ask("study", "Eating", PROBLEM, Table(), 1)
        with pytest.raises(SuggestionError, match="MinResource: 9 is not valid"):
            wrong = replace(PROBLEM, settings={**HYPERBAND, "ResourceValue": 3, "MinResource": 9})
            await suggestions.ask("study", "Hyperband", wrong, Table(), 1)
        assert (await suggestions.ask("study", "Hyperband", PROBLEM, Table(), 1)).suggestions
        assert len(suggestions.pids) == 1


async def test_a_process_that_nobody_asks_ends() -> None:
    async with thinking(idle_seconds=0.01) as suggestions:
        table = Table()
        table.add(await suggestions.ask("study", "Hyperband", PROBLEM, table, 2))
        await until(lambda: not suggestions.pids)
        assert await suggestions.ask("study", "Hyperband", PROBLEM, table, 2) == make_algorithm(
            "Hyperband", PROBLEM
        ).ask(tuple(table.trials), 2)


async def test_a_process_that_cannot_be_started_is_worth_another_try() -> None:
    async with thinking(command=("/nowhere/python",)) as suggestions:
        with pytest.raises(OSError, match="nowhere"):
            await suggestions.ask("study", "Hyperband", PROBLEM, Table(), 1)


async def test_it_sees_nothing_of_the_platforms_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLMESH_DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("PGPASSWORD", "secret")
    async with thinking() as suggestions:
        await suggestions.ask("study", "Hyperband", PROBLEM, Table(), 1)
        environment = Path(f"/proc/{suggestions.pids[0]}/environ").read_bytes()
        assert b"secret" not in environment
        assert b"OMP_NUM_THREADS=1" in environment


SERVICE = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from thinking_room import ODD, PROBLEM, Table, until
from tuning_service.suggestions.built_in import BuiltInSuggestions

async def main():
    suggestions, table = BuiltInSuggestions(command=ODD), Table()
    await suggestions.ask("study", "Telling", PROBLEM, table, 1)
    asking = asyncio.create_task(suggestions.ask("study", "Hanging", PROBLEM, table, 1))
    # The ask lies in its input, or it has taken it: it will not see that the input ends.
    await until(lambda: len(table.read) == 2)
    print(*suggestions.pids, flush=True)
    await asking

asyncio.run(main())
"""


async def test_it_outlives_no_service_that_is_killed() -> None:
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", SERVICE, str(Path(__file__).parent)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert service.stdout is not None
        pid = int(await service.stdout.readline())
        assert is_running(pid)
    finally:
        service.kill()
        await service.communicate()
    await until(lambda: not is_running(pid))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_one_that_died_unasked_is_replaced(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def ask_twice() -> None:
        table = Table()
        async with thinking() as suggestions:
            first = await suggestions.ask("study", "Random", PROBLEM, table, 1)
            (pid,) = suggestions.pids
            os.kill(pid, signal.SIGKILL)
            # The loop has seen that its pipe is closed.
            await until(lambda: not is_running(pid))
            await asyncio.sleep(0.1)
            assert await suggestions.ask("study", "Random", PROBLEM, table, 1) == first

    run(ask_twice())
