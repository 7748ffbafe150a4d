"""TrialService: exec tasks that other services start."""

from __future__ import annotations

from typing import Any

from dlmesh.scheduling.v1 import trials_pb2, trials_pb2_grpc
from servicekit.identity import current_identity

from scheduling_service.usecases.exec_ports import StoredUploads
from scheduling_service.usecases.prepare_exec import ExecRequest, TrialParts
from scheduling_service.usecases.start_trial import CheckTrial, StartTrial
from scheduling_service.usecases.tend_trials import DeleteTrials, ReadTrialResults


class TrialServicer(trials_pb2_grpc.TrialServiceServicer):
    """Translates; see trials.proto for what each call promises."""

    def __init__(
        self,
        check: CheckTrial,
        start: StartTrial,
        read_results: ReadTrialResults,
        delete: DeleteTrials,
        uploads: StoredUploads,
    ) -> None:
        self._check, self._start, self._read_results, self._delete = check, start, read_results, delete
        self._uploads = uploads

    async def CheckTrial(self, request: trials_pb2.CheckTrialRequest, context: Any) -> trials_pb2.CheckTrialResponse:
        current_identity().require_service()
        spec = request.spec
        upload = self._uploads.at(spec.upload, spec.upload_name)
        group = await self._check(spec.owner, request_from_proto(spec), upload)
        return trials_pb2.CheckTrialResponse(instance_group_id=group.id, instance_group=group.name)

    async def StartTrial(self, request: trials_pb2.StartTrialRequest, context: Any) -> trials_pb2.StartTrialResponse:
        current_identity().require_service()
        spec = request.spec
        upload = self._uploads.at(spec.upload, spec.upload_name)
        await self._start(request.task_id, spec.owner, request_from_proto(spec), upload)
        return trials_pb2.StartTrialResponse()

    async def ReadTrialResults(
        self, request: trials_pb2.ReadTrialResultsRequest, context: Any
    ) -> trials_pb2.ReadTrialResultsResponse:
        current_identity().require_service()
        found = await self._read_results(request.task_ids)
        return trials_pb2.ReadTrialResultsResponse(
            results=[
                trials_pb2.TrialResults(task_id=task_id, text=results.text, error=results.error)
                for task_id, results in found.results.items()
            ],
            unread_task_ids=found.unread,
        )

    async def DeleteTrials(
        self, request: trials_pb2.DeleteTrialsRequest, context: Any
    ) -> trials_pb2.DeleteTrialsResponse:
        current_identity().require_service()
        await self._delete(request.task_ids)
        return trials_pb2.DeleteTrialsResponse()


def request_from_proto(spec: trials_pb2.TrialSpec) -> ExecRequest:
    return ExecRequest(
        instance_group=spec.instance_group,
        arguments=spec.arguments,
        priority=spec.priority,
        max_seconds=spec.max_seconds,
        trial=TrialParts(
            study=spec.study,
            config_json=spec.config_json,
            environment=dict(spec.environment),
            parent_task_id=spec.parent_task_id,
        ),
    )
