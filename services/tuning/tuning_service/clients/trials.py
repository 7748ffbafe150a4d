"""Trials as exec tasks of the scheduling service."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

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
# What has been read after so long is saved before more is.
READ_SECONDS = 10.0


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
        found, begun = dict[str, Results](), time.monotonic()
        try:
            async for answer, gone in self._read([trial.uid for trial in trials]):
                for one in answer.results:
                    found[one.task_id] = await asyncio.to_thread(_results, one, plan)
                # Of tasks that are gone nothing more will be known.
                found |= {uid: Results(complaint="its task was deleted") for uid in gone}
                if have_ended and time.monotonic() - begun >= READ_SECONDS:
                    break
        except ServiceError:
            # What is known counts, and the next call begins with the rest.
            if not found:
                raise
        return found

    async def _read(
        self, uids: Sequence[str]
    ) -> AsyncIterator[tuple[trials_pb2.ReadTrialResultsResponse, Collection[str]]]:
        """What is answered, and those who are gone."""
        for start in range(0, len(uids), READ_AT_ONCE):
            unread = list(uids[start : start + READ_AT_ONCE])
            while unread:
                message = trials_pb2.ReadTrialResultsRequest(task_ids=unread)
                answer = await call_from_loop(
                    lambda message=message: self._stub.ReadTrialResults(message)  # type: ignore[misc]
                )
                yield answer, {*unread} - {one.task_id for one in answer.results} - {*answer.unread_task_ids}
                unread = list(answer.unread_task_ids)

    async def delete(self, uids: Sequence[str]) -> None:
        for start in range(0, len(uids), DELETE_AT_ONCE):
            message = trials_pb2.DeleteTrialsRequest(task_ids=uids[start : start + DELETE_AT_ONCE])
            await call_from_loop(lambda message=message: self._stub.DeleteTrials(message))  # type: ignore[misc]


def _results(trial: trials_pb2.TrialResults, plan: Plan) -> Results:
    return Results(complaint=trial.error) if trial.error else read_results(trial.text, plan.objectives)


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
