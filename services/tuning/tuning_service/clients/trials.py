"""Trials as exec tasks of the scheduling service."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from dlmesh.scheduling.v1 import trials_pb2, trials_pb2_grpc
from servicekit.channels import Channels, call_from_loop, call_peer
from servicekit.errors import ServiceError, renamed
from servicekit.identity import Identity, acting_as

from tuning_service.domain.fields import Fields
from tuning_service.domain.plan import Plan
from tuning_service.domain.results import Results, read_results
from tuning_service.domain.study import Study, Trial

# How people who start a search know what the scheduling service complains of.
_FIELDS = {"args": "modelSpec.args", "sigName": "modelSpec.sigName"}
DELETE_AT_ONCE, READ_AT_ONCE = 1000, 200
# An upload of half a gigabyte may have to be unpacked.
CHECK_SECONDS = 600.0


class ExecTrials:
    """`usecases.ports.Runner` for programs that users bring."""

    def __init__(self, channels: Channels) -> None:
        self._stub = channels.stub("scheduling", trials_pb2_grpc.TrialServiceStub)
        self._identity = Identity.service("tuning")

    async def check(self, study: Study) -> tuple[str, str]:
        message = trials_pb2.CheckTrialRequest(spec=_spec(study, {}))
        try:
            with acting_as(self._identity):
                answer = await call_peer(lambda: self._stub.CheckTrial(message), timeout_seconds=CHECK_SECONDS)
        except ServiceError as error:
            # "args, character 12" says where.
            field, comma, where = error.metadata.get("field", "").partition(",")
            if field not in _FIELDS:
                raise
            raise renamed(error, f"{_FIELDS[field]}{comma}{where}") from error
        return answer.instance_group_id, answer.instance_group

    async def start(self, study: Study, plan: Plan, trial: Trial, parent: Trial | None) -> None:
        spec = _spec(study, trial.values)
        spec.environment["SUBID"] = str(trial.number)
        if parent is not None:
            spec.parent_task_id = parent.uid
            spec.environment["DLMESH_PARENT_RESOURCE"] = str(parent.notes.get("resource", ""))
        spec.max_seconds = plan.max_trial_seconds
        message = trials_pb2.StartTrialRequest(task_id=trial.uid, spec=spec)
        # One that takes longer than the call goes on, and the next call waits for the same one.
        await call_from_loop(lambda: self._stub.StartTrial(message))

    async def results(self, plan: Plan, trials: Sequence[Trial], *, have_ended: bool) -> Mapping[str, Results]:
        found: dict[str, Results] = {}
        for start in range(0, len(trials), READ_AT_ONCE):
            unread = [trial.uid for trial in trials[start : start + READ_AT_ONCE]]
            while unread:
                message = trials_pb2.ReadTrialResultsRequest(task_ids=unread)
                answer = await call_from_loop(
                    lambda message=message: self._stub.ReadTrialResults(message)  # type: ignore[misc]
                )
                for one in answer.results:
                    found[one.task_id] = (
                        Results(complaint=one.error) if one.error else read_results(one.text, plan.objectives)
                    )
                unread = list(answer.unread_task_ids)
        # Of tasks that are gone nothing more will be known.
        return {trial.uid: found.get(trial.uid, Results(complaint="its task was deleted")) for trial in trials}

    async def delete(self, uids: Sequence[str]) -> None:
        for start in range(0, len(uids), DELETE_AT_ONCE):
            message = trials_pb2.DeleteTrialsRequest(task_ids=uids[start : start + DELETE_AT_ONCE])
            await call_from_loop(lambda message=message: self._stub.DeleteTrials(message))  # type: ignore[misc]


def _spec(study: Study, values: Mapping[str, object]) -> trials_pb2.TrialSpec:
    request = Fields("", study.request)
    program = request.object("modelSpec")
    return trials_pb2.TrialSpec(
        instance_group=study.group_id or program.text("sigName"),
        arguments=program.text("args"),
        upload=study.upload,
        upload_name=study.upload_name,
        config_json=json.dumps(values, indent=1),
        owner=study.owner,
        priority=request.whole("priority") or 0,
        study=study.name,
    )
