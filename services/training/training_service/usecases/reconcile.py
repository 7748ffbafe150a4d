"""Make written intent true: submit, follow and settle runs. The only place that calls the scheduling service's jobs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Generic, cast

from servicekit.errors import Code, ServiceError
from servicekit.jobs import JobFacts, JobRequest

from training_service.domain.runs import Run, Training, Validation
from training_service.usecases.ports import Jobs, Limits, Models, R, Runs, Workspace
from training_service.usecases.runs import ModelRuns, kind_of

log = logging.getLogger(__name__)

# A validation starts again; a training continues from its newest checkpoint, as often as it asks for.
VALIDATION_RESTARTS = 2
GRACE_SECONDS = 8.0


class FollowJobs(Generic[R]):
    """One pass over the active runs of one kind; safe to be killed anywhere and to repeat.

    `limits` hold for every job; `settle` is awaited with a job that has ended, before its run is.
    """

    def __init__(
        self,
        runs: Runs[R],
        jobs: Jobs,
        workspace: Workspace,
        limits: Limits,
        *,
        settle: Callable[[JobFacts], Awaitable[None]] | None = None,
    ) -> None:
        self._runs, self._jobs, self._workspace = runs, jobs, workspace
        self._limits = limits
        self._settle = settle
        self._told_to_stop: set[str] = set()

    async def __call__(self) -> bool:
        """True when a job was submitted, so that it is looked at again at once."""
        active = await self._runs.active()
        if not active:
            self._told_to_stop.clear()
            return False
        submitted = [run.uid for run in active if not run.accepted and await self._guarded(run)]
        followed = [run for run in active if run.accepted]
        if followed:
            await self._follow(followed)
        return bool(submitted)

    async def _guarded(self, run: R) -> bool:
        try:
            await self._submit(run)
        except ServiceError as error:
            log.warning("cannot submit %s %s: %s", kind_of(run), run.name, error.message)
            if error.code is not Code.INVALID_ARGUMENT:
                # The peer is away, restarting or in trouble: the next pass tries again.
                return False
            run.refuse(error.message)
        except OSError as error:
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
            name=f"{run.model_name}/{run.name}",
            kind=kind_of(run),
            owner=run.owner,
            instance_group=run.group.id,
            gpus_per_rank=1 if run.group.gpus else 0,
            command=(),
            working_directory=self._workspace.folder(run),
            max_restarts=VALIDATION_RESTARTS,
            grace_seconds=GRACE_SECONDS,
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
                # An elastic one may be told to have more workers than there is room for.
                ranks=min(run.cluster_size, run.group.room(run.gpu_ratio)) if run.is_elastic else run.cluster_size,
                min_ranks=run.min_workers,
                gpu_percentage=run.gpu_ratio,
                max_restarts=run.max_restarts,
                max_silent_seconds=run.max_silent_seconds,
            )
        return replace(request, command=await self._workspace.prepare_validation(cast(Validation, run)))

    async def _follow(self, runs: Sequence[R]) -> None:
        jobs = await self._jobs.get([run.job_id for run in runs])
        for run in runs:
            try:
                job = jobs.get(run.job_id)
                if run.follow(job):
                    if run.status.is_final and job and self._settle:
                        # Before the final status is written: afterwards nobody would come back.
                        await self._settle(job)
                    await self._runs.save_state(run)
                if run.stop_requested and not run.status.is_final and run.uid not in self._told_to_stop:
                    await self._jobs.stop(run.job_id)
                    self._told_to_stop.add(run.uid)
            except Exception:
                log.exception("cannot follow %s %s", kind_of(run), run.name)


class RemoveOrphans(Generic[R]):
    """One pass over the runs of models that have gone: what is active is stopped, what has ended is removed."""

    def __init__(self, runs: Runs[R], models: Models, model_runs: ModelRuns[R]) -> None:
        self._runs, self._models, self._model_runs = runs, models, model_runs

    async def __call__(self) -> bool:
        for model_uid, model_name in await self._runs.models():
            if await self._models.uid_of(model_name) == model_uid:
                continue
            for run in await self._runs.of_model(model_uid):
                await self._end(run)
        return False

    async def _end(self, run: Run) -> None:
        try:
            if run.status.is_final:
                await self._model_runs.remove(cast(R, run))
            elif not run.stop_requested:
                await self._runs.request_stop(run.uid)
        except Exception:
            log.exception("cannot remove %s %s of a deleted model", kind_of(run), run.name)
