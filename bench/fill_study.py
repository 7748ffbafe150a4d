"""A finished study of any size, written into the tables of a platform as its service leaves it: for measuring only."""

from __future__ import annotations

import random
from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa
from servicekit.times import utc_now
from tuning_service.storage.tables import StudyRow, TrialRow

BATCH = 2_000


def fill(home: Path, name: str, trials: int) -> None:
    """Six dimensions, one metric beside the objective, on the platform's SQLite; the study comes last, so that the
    service sees a whole one."""
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
    now, uid = utc_now(), uuid4().hex
    best, best_loss = 0, float("inf")
    (database_file,) = (home / "db").glob("tuning*.sqlite")
    engine = sa.create_engine(f"sqlite:///{database_file}", connect_args={"timeout": 60})
    for start in range(0, trials, BATCH):
        rows = []
        for number in range(start + 1, min(trials, start + BATCH) + 1):
            place = [numbers.random() for _ in names]
            loss = sum((value - 0.3) ** 2 for value in place)
            if loss < best_loss:
                best, best_loss = number, loss
            rows.append(
                {
                    "study_uid": uid,
                    "number": number,
                    "uid": uuid4().hex,
                    "parameters": dict(zip(names, place, strict=True)),
                    "place": place,
                    "notes": {},
                    "status": "FINISHED",
                    "message": "",
                    "stop_reason": "",
                    "objectives": [loss],
                    "loss": loss,
                    "metrics": {"loss": [loss, loss + 1, loss], "accuracy": [0.0, 1.0, 1 - loss / 6]},
                    "curve": [[1.0, loss + 1], [2.0, loss]],
                    "attempts": 1,
                    "kills": 0,
                    "started_at": now,
                    "ended_at": now,
                    "driver_id": "",
                    "earlier_uids": [],
                    # As if they had been run one after the other.
                    "change": number,
                }
            )
        with engine.begin() as connection:
            connection.execute(sa.insert(TrialRow.__table__), rows)
    study = {
        **{column.name: "" for column in StudyRow.__table__.columns if isinstance(column.type, sa.String)},
        **dict.fromkeys(("run_seconds", "failed", "stopped"), 0),
        "uid": uid,
        "name": name,
        "kind": "hyper_search",
        "owner": "Admin",
        "owner_is_administrator": True,
        "request": request,
        "group_id": "local",
        "group_name": "local",
        "seed": 7,
        "known": [],
        "algorithm": "TPE",
        "objective_metric": "loss",
        "objective": "Minimize",
        "most_trials": trials,
        "warnings": [],
        "created_at": now,
        "resumed_at": now,
        "ended_at": now,
        "status": "FINISHED",
        "stop_requested": False,
        "is_exhausted": False,
        "trials": trials,
        "finished": trials,
        "best": best,
        "best_loss": best_loss,
        "improved_at": best,
        "change": trials,
        "is_tended": False,
    }
    with engine.begin() as connection:
        connection.execute(sa.insert(StudyRow.__table__), [study])
    engine.dispose()
