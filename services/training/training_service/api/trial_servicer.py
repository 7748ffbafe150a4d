"""TrainingTrialService: trainings that other services start."""

from __future__ import annotations

from typing import TypeAlias

import grpc
from dlmesh.training.v1 import trials_pb2, trials_pb2_grpc
from servicekit.identity import current_identity

from training_service.api.trial_mapping import (
    candidates,
    checked_trial,
    curves_of_trials,
    trial_facts,
    trial_metrics,
    trial_request,
)
from training_service.usecases.delete_trials import DeleteTrials
from training_service.usecases.read_trials import GetTrial, ListActiveTrials, ReadTrialMetrics
from training_service.usecases.start_trial import CheckTrial, StartTrial

Context: TypeAlias = grpc.aio.ServicerContext


class TrainingTrialServicer(trials_pb2_grpc.TrainingTrialServiceServicer):
    """Translates; see trials.proto for what each call promises."""

    def __init__(
        self,
        check: CheckTrial,
        start: StartTrial,
        read_metrics: ReadTrialMetrics,
        get: GetTrial,
        delete: DeleteTrials,
        list_active: ListActiveTrials,
    ) -> None:
        self._check, self._start, self._read_metrics = check, start, read_metrics
        self._get, self._delete, self._list_active = get, delete, list_active

    async def CheckTrial(
        self, request: trials_pb2.CheckTrialRequest, context: Context
    ) -> trials_pb2.CheckTrialResponse:
        current_identity().require_service()
        return checked_trial(await self._check(trial_request(request.spec), candidates(request)))

    async def StartTrial(
        self, request: trials_pb2.StartTrialRequest, context: Context
    ) -> trials_pb2.StartTrialResponse:
        current_identity().require_service()
        await self._start(request.trial_id, trial_request(request.spec))
        return trials_pb2.StartTrialResponse()

    async def ReadTrialMetrics(
        self, request: trials_pb2.ReadTrialMetricsRequest, context: Context
    ) -> trials_pb2.ReadTrialMetricsResponse:
        current_identity().require_service()
        found = await self._read_metrics(request.trial_ids, curves_of_trials(request))
        return trials_pb2.ReadTrialMetricsResponse(
            trials=[trial_metrics(trial) for trial in found.trials], unread_trial_ids=found.unread
        )

    async def GetTrial(self, request: trials_pb2.GetTrialRequest, context: Context) -> trials_pb2.GetTrialResponse:
        current_identity().require_service()
        return trial_facts(await self._get(request.trial_id))

    async def DeleteTrials(
        self, request: trials_pb2.DeleteTrialsRequest, context: Context
    ) -> trials_pb2.DeleteTrialsResponse:
        current_identity().require_service()
        await self._delete(request.trial_ids)
        return trials_pb2.DeleteTrialsResponse()

    async def ListActiveTrials(
        self, request: trials_pb2.ListActiveTrialsRequest, context: Context
    ) -> trials_pb2.ListActiveTrialsResponse:
        current_identity().require_service()
        trials = await self._list_active(request.model_name)
        return trials_pb2.ListActiveTrialsResponse(
            trials=[trials_pb2.ActiveTrial(trial_id=trial.uid, study=trial.study) for trial in trials]
        )
