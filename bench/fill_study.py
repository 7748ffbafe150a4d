"""A finished study of any size, written into the tables of a platform as its service would have: for measuring only."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from uuid import uuid4

from servicekit.database import Database
from servicekit.times import utc_now
from tuning_service.domain.results import MetricRange
from tuning_service.domain.study import Kind, Status, Study, Trial, TrialStatus
from tuning_service.storage.studies import SqlStudies

BATCH = 2_000


def fill(home: Path, name: str, trials: int) -> None:
    """Six dimensions, one metric beside the objective, on the platform's SQLite."""
    asyncio.run(_fill(home, name, trials))


async def _fill(home: Path, name: str, trials: int) -> None:
    numbers = random.Random(1)
    names = [f"p{index}" for index in range(6)]
    parameters = [
        {"name": one, "type": "Range", "dataType": "double", "minDbVal": 0.0, "maxDbVal": 1.0} for one in names
    ]
    request = {
        "modelSpec": {"sigName": "local", "args": "--exec-start PyTorch --user-cmd -- true"},
        "algoDef": {"algorithm": "TPE", "maxJobNum": trials, "objectiveMetric": "loss", "objective": "minimize"},
        "hyperParams": parameters,
    }
    (database_file,) = (home / "db").glob("tuning*.sqlite")
    database = Database(f"sqlite:///{database_file}", "tuning")
    studies = SqlStudies(database)
    now = utc_now()
    study = Study(
        uuid4().hex, name, Kind.HYPER_SEARCH, "Admin", request, "local", "local", 7, now, status=Status.RUNNING
    )
    await studies.add(study)
    for start in range(0, trials, BATCH):
        batch = []
        for number in range(start + 1, start + BATCH + 1):
            place = tuple(numbers.random() for _ in names)
            batch.append(Trial(study.uid, number, uuid4().hex, dict(zip(names, place, strict=True)), place))
        await studies.append(study.uid, start, batch, is_exhausted=False)
        for trial in batch:
            loss = sum((value - 0.3) ** 2 for value in trial.place or ())
            trial.objectives, trial.curve = (loss,), ((1.0, loss + 1), (2.0, loss))
            trial.metrics = {"loss": MetricRange(loss, loss + 1, loss), "accuracy": MetricRange(0, 1, 1 - loss / 6)}
            trial.started_at = now
            trial.end(TrialStatus.FINISHED, "", now)
        await studies.save(study.uid, batch, {trial.number: trial.objectives[0] for trial in batch})
    found = await studies.get(study.uid)
    assert found is not None
    found.end(Status.FINISHED, "maxJobNum is reached", utc_now())
    await studies.end(found)
    await studies.settle(study.uid)
    await database.close()
