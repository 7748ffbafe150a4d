"""How tests talk to TrainingTrialService."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import grpc
from dlmesh.training.v1 import trials_pb2, trials_pb2_grpc
from servicekit.database import Database
from training_room import Room, refused
from training_service.domain.runs import Training
from training_service.storage.trials import SqlTrials

Value = trials_pb2.TrialValue


def trials_of(room: Room) -> Any:
    return room.client.stub(trials_pb2_grpc.TrainingTrialServiceStub)


def spec(**changes: Any) -> trials_pb2.TrialSpec:
    return trials_pb2.TrialSpec(**{"model_name": "digits", "owner": "alice", "study": "s1", **changes})


async def check(room: Room, candidates: dict[str, list[Any]] | None = None, **changes: Any) -> Any:
    several = {name: trials_pb2.TrialValues(values=values) for name, values in (candidates or {}).items()}
    request = trials_pb2.CheckTrialRequest(spec=spec(**changes), candidates=several)
    return await trials_of(room).CheckTrial(request)


async def start(room: Room, trial_id: str = "", **changes: Any) -> str:
    trial_id = trial_id or uuid4().hex
    await trials_of(room).StartTrial(trials_pb2.StartTrialRequest(trial_id=trial_id, spec=spec(**changes)))
    return trial_id


async def start_refused(room: Room, trial_id: str = "", **changes: Any) -> tuple[grpc.StatusCode, str]:
    return await refused(start(room, trial_id, **changes))


async def read(room: Room, *trial_ids: str, **asked: Any) -> dict[str, Any]:
    found, unread = dict[str, Any](), list(trial_ids)
    while True:
        request = trials_pb2.ReadTrialMetricsRequest(trial_ids=unread, **asked)
        answer = await trials_of(room).ReadTrialMetrics(request)
        assert answer.trials or not answer.unread_trial_ids
        found |= {trial.trial_id: trial for trial in answer.trials}
        unread = list(answer.unread_trial_ids)
        if not unread:
            return found


async def stored(room: Room, trial_id: str) -> Training:
    """The trial as it stands in the service's database."""
    database = Database(room.settings.database_url, "training")
    try:
        return (await SqlTrials(database, lambda _: "").known([trial_id]))[trial_id]
    finally:
        await database.close()


async def get(room: Room, trial_id: str) -> Any:
    return await trials_of(room).GetTrial(trials_pb2.GetTrialRequest(trial_id=trial_id))


async def delete(room: Room, *trial_ids: str) -> None:
    await trials_of(room).DeleteTrials(trials_pb2.DeleteTrialsRequest(trial_ids=trial_ids))


async def active(room: Room, model_name: str = "digits") -> dict[str, str]:
    request = trials_pb2.ListActiveTrialsRequest(model_name=model_name)
    return {trial.trial_id: trial.study for trial in (await trials_of(room).ListActiveTrials(request)).trials}
