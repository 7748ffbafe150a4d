"""Check and start trials: trainings with ids of the caller's making."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from servicekit.errors import Code, ServiceError, invalid
from servicekit.single_flight import SingleFlight
from servicekit.trials import check_id, deleted_trial

from training_service.domain.runs import Status, Training
from training_service.usecases.ports import Trials
from training_service.usecases.prepare_trial import PreparedTrial, PrepareTrial, TrialRequest
from training_service.usecases.submit_runs import SubmitRuns
from training_service.usecases.trial_fields import as_tuning_knows


class CheckTrial:
    """Callable with a request and values that its parameters may get besides; how the trial would run."""

    def __init__(self, prepare: PrepareTrial) -> None:
        self._prepare = prepare

    async def __call__(self, request: TrialRequest, candidates: Mapping[str, Sequence[Any]]) -> PreparedTrial:
        return await self._prepare(uuid4().hex, request, candidates)


class StartTrial:
    """Callable with an id and a request; the trial, as it was asked for first, whose job is submitted.

    A call for an id that is being started in this process waits for that start. 404 with the reason DELETED when the
    trial was deleted, 400 when it can never run, 503 when it cannot be submitted now: the loop goes on trying.
    """

    def __init__(
        self, trials: Trials, prepare: PrepareTrial, submit: SubmitRuns[Training], wake: Callable[[], None]
    ) -> None:
        self._trials, self._prepare, self._submit, self._wake = trials, prepare, submit, wake
        self._starting = SingleFlight[Training]("trial")

    async def __call__(self, trial_id: str, request: TrialRequest) -> Training:
        check_id("trial_id", trial_id)
        return await self._starting(trial_id, lambda: self._started(trial_id, request))

    async def _started(self, trial_id: str, request: TrialRequest) -> Training:
        training = await self._known(trial_id) or await self._added(trial_id, request)
        if not training.accepted and not training.status.is_final:
            try:
                await self._submit(training)
            finally:
                # It follows the job now, or goes on trying.
                self._wake()
            training = await self._known(trial_id) or training
        if training.accepted:
            return training
        if training.status is Status.FAILED:
            raise ServiceError(Code.INVALID_ARGUMENT, "CANNOT_RUN", training.status_message, {"trial_id": trial_id})
        if not training.status.is_final:
            why = training.status_message or "the scheduling service cannot take its job now"
            raise ServiceError(Code.UNAVAILABLE, "UNAVAILABLE", f"trial {trial_id} is not submitted yet: {why}")
        return training

    async def _known(self, trial_id: str) -> Training | None:
        training = (await self._trials.known([trial_id])).get(trial_id)
        if training is None and await self._trials.was_deleted(trial_id):
            raise deleted_trial("trial_id", trial_id)
        return training

    async def _added(self, trial_id: str, request: TrialRequest) -> Training:
        training = (await self._prepare(trial_id, request)).training
        try:
            await self._trials.add(training)
        except ServiceError as error:
            if error.code is not Code.ALREADY_EXISTS:
                raise as_tuning_knows(error) from error
        else:
            return training
        # Another process of this service was first, or it is no trial's.
        known = await self._known(trial_id)
        if known is None:
            raise invalid("trial_id", trial_id, "an id that is no training's")
        return known
