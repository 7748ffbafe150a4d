"""Submit the jobs of runs: prepare their files, ask the scheduling service."""

from __future__ import annotations

import asyncio
import errno
import logging
from dataclasses import replace
from typing import Generic, cast

from servicekit.errors import Code, ServiceError
from servicekit.jobs import JobRequest

from training_service.domain.runs import Run, Training, Validation
from training_service.usecases.ports import Jobs, Limits, R, Runs, Workspace
from training_service.usecases.runs import kind_of
from training_service.usecases.trial_fields import as_tuning_knows

log = logging.getLogger(__name__)

# A validation starts again; a training continues from its newest checkpoint, as often as it asks for.
VALIDATION_RESTARTS = 2
# What this machine is short of for a while.
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class SubmitRuns(Generic[R]):
    """Callable with a run that has no job yet; safe to be killed anywhere and to repeat.

    True when its job is accepted now; whatever is in the way of one run is not in the way of the others. A call for a
    run that is being submitted waits for that.
    """

    def __init__(self, runs: Runs[R], jobs: Jobs, workspace: Workspace, limits: Limits) -> None:
        self._runs, self._jobs, self._workspace, self._limits = runs, jobs, workspace, limits
        self._going: dict[str, asyncio.Task[bool]] = {}

    async def __call__(self, run: R) -> bool:
        going = self._going.get(run.uid)
        if going is None:
            going = self._going[run.uid] = asyncio.create_task(self._guarded(run), name=f"submit {run.uid}")
            going.add_done_callback(lambda _: self._going.pop(run.uid))
        # It goes on when its caller goes away.
        return await asyncio.shield(going)

    def is_submitting(self, run: Run) -> bool:
        """True while a call for it goes on."""
        return run.uid in self._going

    async def _guarded(self, run: R) -> bool:
        try:
            return await self._try_to_submit(run)
        except Exception as error:
            message = f"cannot prepare the run, trying again: {error or type(error).__name__}"
            if run.status_message == message:
                return False
            # People are told once.
            log.exception("cannot prepare %s %s, trying again", kind_of(run), run.name)
            run.status_message = message
        try:
            await self._runs.save_state(run)
        except Exception:
            log.exception("cannot save %s %s", kind_of(run), run.name)
        return False

    async def _try_to_submit(self, run: R) -> bool:
        try:
            await self._submit(run)
        except ServiceError as error:
            log.warning("cannot submit %s %s: %s", kind_of(run), run.name, error.message)
            if error.code is not Code.INVALID_ARGUMENT:
                # The peer is away, restarting or in trouble: the next pass tries again.
                return False
            is_trial = isinstance(run, Training) and run.is_trial
            run.refuse(as_tuning_knows(error).message if is_trial else error.message)
        except OSError as error:
            if error.errno in _PASSING:
                raise
            # Disk trouble, or the model's files have gone: repeating would not help.
            log.exception("cannot prepare %s %s", kind_of(run), run.name)
            run.refuse(f"cannot prepare the run: {error}")
        await self._runs.save_state(run)
        return run.accepted

    async def _submit(self, run: R) -> None:
        if run.stop_requested:
            # A pass before this one may have submitted it and been killed.
            try:
                await self._jobs.stop(run.job_id)
                run.accepted = True
            except ServiceError as error:
                if error.code is not Code.NOT_FOUND:
                    raise
                run.stopped_before_start()
            return
        await self._jobs.submit(await self._request(run))
        run.accepted = True

    async def _request(self, run: R) -> JobRequest:
        request = JobRequest(
            job_id=run.job_id,
            name=run.title,
            kind=kind_of(run),
            owner=run.owner,
            instance_group=run.group.id,
            gpus_per_rank=1 if run.group.gpus else 0,
            command=(),
            working_directory=self._workspace.folder(run),
            max_restarts=VALIDATION_RESTARTS,
            grace_seconds=self._limits.stop_grace_seconds,
            model=run.model_name,
            dataset=run.dataset_name,
            framework=run.framework,
            environment=self._limits.worker_environment,
            max_silent_seconds=self._limits.max_silent_seconds,
            max_disk_bytes=self._limits.max_disk_bytes,
            warm=run.framework == "PyTorch",
        )
        if isinstance(run, Training):
            return replace(
                request,
                command=await self._workspace.prepare_training(run),
                ranks=run.most_workers,
                min_ranks=run.min_workers,
                gpus_per_rank=run.gpus_per_worker or request.gpus_per_rank,
                gpu_percentage=run.gpu_percentage,
                max_restarts=run.max_restarts,
                max_silent_seconds=run.max_silent_seconds,
                priority=run.priority,
                max_seconds=run.max_seconds,
                study=run.study,
                environment={**self._limits.worker_environment, **run.environment},
            )
        validation = cast(Validation, run)
        return replace(
            request,
            command=await self._workspace.prepare_validation(validation),
            max_silent_seconds=validation.max_silent_seconds or self._limits.max_silent_seconds,
        )
