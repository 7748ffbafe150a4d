"""Makes the modules beside the tests importable; the running service as a fixture."""

import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from testkit.services import running, settings_for
from training_service.wiring import build

sys.path.insert(0, str(Path(__file__).parent))

from training_fakes import MODEL, FakeDatasets, FakeJobs, FakeModels
from training_room import Room


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    code = tmp_path / "models" / MODEL.uid
    code.mkdir(parents=True)
    for program in ("main.py", "inference.py"):
        (code / program).write_text("print('hello')")
    models, datasets, jobs = FakeModels(replace(MODEL, path=str(code))), FakeDatasets(), FakeJobs()
    settings = settings_for("training", tmp_path)
    async with running(build(settings, models=models, datasets=datasets, jobs=jobs), settings) as client:
        yield Room(client, settings, models, datasets, jobs)
