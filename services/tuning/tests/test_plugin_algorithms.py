"""Algorithms that users install: what they are told, what they may answer, and how they go on."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import venv
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from plugin_room import (
    HEAD,
    PARAMETERS,
    PLUGINS,
    Lab,
    end_all,
    laboratory,
    search,
    study_of,
    values,
)
from thinking_room import until
from tuning_service.domain.evaluation import Answer, Evaluation, TrialState
from tuning_service.suggestions.plugin_process import HOST
from tuning_service.usecases.ports import SuggestionError


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path) as lab:
        yield lab


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
    folder, work = str(lab.home / "algorithms" / "Telling"), str(lab.home / "tuning" / "study" / "plugin")
    typed = [{**one, "dataType": word} for one, word in zip(PARAMETERS, ("DOUBLE", "INT", "STR"), strict=True)]
    assert made == [["Telling", typed, {"RandomSeed": "7", "eta": "0.5"}, work, folder]]
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
    source = HOST.read_text()
    ast.parse(source, feature_version=(3, 6))
    # Nothing beside the standard library.
    output = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            "import sys; exec(open(sys.argv[1]).read(), {'__name__': 'x'})",
            HOST,
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
