"""Make predictions true: wait for their model, submit, follow and settle their jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from servicekit.errors import Code, ServiceError
from servicekit.jobs import JobRequest
from servicekit.reconcile import Next

from inference_service.domain.models import InferenceModel, ModelState
from inference_service.domain.predictions import Prediction, Status
from inference_service.usecases.ports import InferenceModels, Jobs, Predictions, Workspace

log = logging.getLogger(__name__)

MAX_RESTARTS = 2
GRACE_SECONDS = 3.0


class FollowPredictions:
    """One pass over the active predictions; safe to be killed anywhere and to repeat.

    `lacks` says why a model that is READY cannot be asked now, and nothing when it is in memory.
    """

    def __init__(
        self,
        predictions: Predictions,
        models: InferenceModels,
        jobs: Jobs,
        workspace: Workspace,
        lacks: Callable[[InferenceModel], str],
    ) -> None:
        self._predictions, self._models = predictions, models
        self._jobs, self._workspace, self._lacks = jobs, workspace, lacks
        self._told_to_stop: set[str] = set()

    async def __call__(self) -> Next:
        active = await self._predictions.active()
        if not active:
            self._told_to_stop.clear()
            return Next.LATER
        submitted = [each.uid for each in active if not each.accepted and await self._submit(each)]
        followed = [each for each in active if each.accepted]
        if followed:
            await self._follow(followed)
        return Next.AT_ONCE if submitted else Next.SOON

    async def _submit(self, prediction: Prediction) -> bool:
        """True when the job was accepted."""
        try:
            changed = await self._advance(prediction)
        except ServiceError as error:
            log.warning("cannot submit prediction %s: %s", prediction.name, error.message)
            if error.code is not Code.INVALID_ARGUMENT:
                # The peer is away, restarting or in trouble: the next pass tries again.
                return False
            prediction.end(Status.FAILED, error.message)
            changed = True
        except OSError as error:
            log.exception("cannot prepare prediction %s", prediction.name)
            prediction.end(Status.FAILED, f"cannot prepare the prediction: {error}")
            changed = True
        if changed:
            await self._predictions.save_state(prediction)
        return prediction.accepted

    async def _advance(self, prediction: Prediction) -> bool:
        if prediction.stop_requested:
            # A pass before this one may have submitted it and been killed.
            try:
                await self._jobs.stop(prediction.job_id)
                prediction.accepted = True
            except ServiceError as error:
                if error.code is not Code.NOT_FOUND:
                    raise
                prediction.end(Status.STOPPED, "stopped before it started")
            return True
        model = await self._models.find(prediction.model_name)
        if model is None or model.uid != prediction.model_uid:
            prediction.end(Status.FAILED, f"inference model {prediction.model_name} was deleted")
            return True
        version = model.find_version(prediction.model_version)
        if version is None:
            message = f"version {prediction.model_version} of inference model {model.name} was deleted"
            prediction.end(Status.FAILED, message)
        elif version.state is ModelState.FAILED:
            prediction.end(Status.FAILED, f"inference model {model.name} failed: {version.status_message}")
        elif version.state is not ModelState.READY:
            because = f" ({version.status_message})" if version.status_message else ""
            return prediction.wait_for(f"inference model {model.name} is {version.state}{because}")
        elif reason := self._lacks(model):
            return prediction.wait_for(f"inference model {model.name} {reason}")
        else:
            await self._jobs.submit(await self._request(prediction))
            prediction.accepted = True
        return True

    async def _request(self, prediction: Prediction) -> JobRequest:
        return JobRequest(
            job_id=prediction.job_id,
            name=prediction.name,
            owner=prediction.owner,
            instance_group=prediction.group.id,
            command=await self._workspace.prepare(prediction),
            working_directory=str(self._workspace.folder(prediction.uid)),
            model=prediction.model_name,
            kind="prediction",
            max_restarts=MAX_RESTARTS,
            grace_seconds=GRACE_SECONDS,
            warm=True,
        )

    async def _follow(self, predictions: Sequence[Prediction]) -> None:
        jobs = await self._jobs.get([each.job_id for each in predictions])
        for each in predictions:
            try:
                if each.follow(jobs.get(each.job_id)):
                    if each.status is Status.FINISHED and not await self._workspace.has_results(each):
                        each.end(Status.FAILED, "the prediction program ended without a result file")
                    await self._predictions.save_state(each)
                if each.stop_requested and not each.status.is_final and each.uid not in self._told_to_stop:
                    await self._jobs.stop(each.job_id)
                    self._told_to_stop.add(each.uid)
            except Exception:
                log.exception("cannot follow prediction %s", each.name)
