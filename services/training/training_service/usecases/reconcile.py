"""Make written intent true: submit, follow and settle runs. The only place that calls the scheduling service's jobs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, cast

from servicekit.errors import Code, ServiceError
from servicekit.jobs import JobFacts, JobRequest

from training_service.domain.runs import Run, Training, Validation
from training_service.usecases.ports import Jobs, Models, R, Runs, Workspace
from training_service.usecases.runs import ModelRuns, kind_of

log = logging.getLogger(__name__)

# A training continues from its newest checkpoint, a validation starts again.
MAX_RESTARTS = 2
GRACE_SECONDS = 8.0


class FollowJobs(Generic[R]):
    """One pass over the active runs of one kind; safe to be killed anywhere and to repeat.

    `environment` is given to every job; `settle` is awaited with a job that has ended, before its run is.
    """

    def __init__(
        self,
        runs: Runs[R],
        jobs: Jobs,
        workspace: Workspace,
        *,
        environment: Mapping[str, str] | None = None,
        settle: Callable[[JobFacts], Awaitable[None]] | None = None,
    ) -> None:
        self._runs, self._jobs, self._workspace = runs, jobs, workspace
        self._environment = dict(environment or {})
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
        if isinstance(run, Training):
            command = await self._workspace.prepare_training(run)
            ranks, framework = run.cluster_size, run.framework
        else:
            command = await self._workspace.prepare_validation(cast(Validation, run))
            ranks, framework = 1, "PyTorch"
        return JobRequest(
            job_id=run.job_id,
            name=f"{run.model_name}/{run.name}",
            kind=kind_of(run),
            owner=run.owner,
            instance_group=run.group.id,
            ranks=ranks,
            gpus_per_rank=1 if run.group.gpus >= ranks else 0,
            command=command,
            working_directory=self._workspace.folder(run),
            max_restarts=MAX_RESTARTS,
            grace_seconds=GRACE_SECONDS,
            model=run.model_name,
            dataset=run.dataset_name,
            framework=framework,
            environment=self._environment,
            warm=True,
        )

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
