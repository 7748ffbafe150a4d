"""Make written intent true: submit, follow and settle runs. The only place that calls the scheduling service's jobs."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Generic, cast

from servicekit.errors import Code, ServiceError
from servicekit.jobs import JobFacts, JobRequest
from servicekit.reconcile import Next
from servicekit.times import utc_now

from training_service.domain.runs import Run, Training, Validation
from training_service.usecases.ports import Jobs, Limits, Models, R, Runs, Workspace
from training_service.usecases.runs import kind_of

log = logging.getLogger(__name__)

# A validation starts again; a training continues from its newest checkpoint, as often as it asks for.
VALIDATION_RESTARTS = 2
# What this machine is short of for a while.
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class FollowJobs(Generic[R]):
    """One pass over the active runs of one kind; safe to be killed anywhere and to repeat.

    `limits` hold for every job; `settle` is awaited with a job that has ended until it says True, before its run ends.
    """

    def __init__(
        self,
        runs: Runs[R],
        jobs: Jobs,
        workspace: Workspace,
        limits: Limits,
        *,
        settle: Callable[[JobFacts], Awaitable[bool]] | None = None,
    ) -> None:
        self._runs, self._jobs, self._workspace = runs, jobs, workspace
        self._limits = limits
        self._settle = settle
        self._told_to_stop: set[str] = set()

    async def __call__(self) -> Next:
        active = await self._runs.active()
        if not active:
            self._told_to_stop.clear()
            return Next.LATER
        submitted = [run.uid for run in active if not run.accepted and await self._guarded(run)]
        followed = [run for run in active if run.accepted]
        is_settled = not followed or await self._follow(followed)
        return Next.AT_ONCE if submitted or not is_settled else Next.SOON

    async def _guarded(self, run: R) -> bool:
        """True when its job is accepted now; whatever is in the way of one run is not in the way of the others."""
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
            run.refuse(error.message)
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
            name=f"{run.model_name}/{run.name}",
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
                gpu_percentage=run.gpu_percentage,
                max_restarts=run.max_restarts,
                max_silent_seconds=run.max_silent_seconds,
                priority=run.priority,
                max_seconds=run.max_seconds,
            )
        validation = cast(Validation, run)
        return replace(
            request,
            command=await self._workspace.prepare_validation(validation),
            max_silent_seconds=validation.max_silent_seconds or self._limits.max_silent_seconds,
        )

    async def _follow(self, runs: Sequence[R]) -> bool:
        """False when there is more to settle: the others come first."""
        is_settled = True
        jobs = await self._jobs.get([run.job_id for run in runs])
        for run in runs:
            try:
                job = jobs.get(run.job_id)
                if run.follow(job):
                    # Before the final status is written: afterwards nobody would come back.
                    if run.status.is_final and job and self._settle and not await self._settle(job):
                        is_settled = False
                        continue
                    await self._runs.save_state(run)
                if run.stop_requested and not run.status.is_final and run.uid not in self._told_to_stop:
                    await self._jobs.stop(run.job_id)
                    self._told_to_stop.add(run.uid)
            except Exception:
                log.exception("cannot follow %s %s", kind_of(run), run.name)
        return is_settled


class RemoveOrphans(Generic[R]):
    """One pass over the runs of models that have gone: what is active is stopped at once, what has ended is removed.

    That is when the model has been gone for `grace_seconds`, as far as was seen: that the service of models does not
    know it may also come of an older database that was put back, and what a training made cannot be.
    """

    def __init__(
        self,
        runs: Runs[R],
        models: Models,
        *,
        grace_seconds: float,
        wake_removals: Callable[[], None],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._runs, self._models, self._wake_removals = runs, models, wake_removals
        self._grace, self._now = timedelta(seconds=grace_seconds), now

    async def __call__(self) -> Next:
        for model in await self._runs.models():
            gone_since = model.gone_since
            if await self._models.uid_of(model.name) == model.uid:
                if gone_since is not None:
                    await self._runs.set_orphaned(model.uid, None)
                continue
            if gone_since is None:
                gone_since = self._now()
                await self._runs.set_orphaned(model.uid, gone_since)
            is_due = self._now() - gone_since >= self._grace
            for run in await self._runs.of_model(model.uid):
                await self._end(run, is_due=is_due)
        return Next.LATER

    async def _end(self, run: Run, *, is_due: bool) -> None:
        try:
            if run.status.is_final:
                if not is_due:
                    return
                await self._runs.remove(run.uid)
                self._wake_removals()
            elif not run.stop_requested:
                await self._runs.request_stop(run.uid)
        except ServiceError as error:
            # What uses it ends first.
            log.info("%s %s of a deleted model stays for now: %s", kind_of(run), run.name, error.message)
        except Exception:
            log.exception("cannot remove %s %s of a deleted model", kind_of(run), run.name)
