"""Make written intent true: have runs submitted, follow and settle them, remove what has lost its model."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Generic

from servicekit.errors import ServiceError
from servicekit.jobs import JobFacts
from servicekit.reconcile import Next
from servicekit.times import utc_now

from training_service.domain.runs import Run
from training_service.usecases.ports import Jobs, Limits, Models, R, Runs, Workspace
from training_service.usecases.runs import kind_of
from training_service.usecases.submit_runs import SubmitRuns

log = logging.getLogger(__name__)


class FollowJobs(Generic[R]):
    """One pass over the active runs of one kind; safe to be killed anywhere and to repeat.

    `limits` hold for every job; `settle` is awaited with a job that has ended until it says True, before its run ends.
    `submit` is given when others submit runs, too.
    """

    def __init__(
        self,
        runs: Runs[R],
        jobs: Jobs,
        workspace: Workspace,
        limits: Limits,
        *,
        settle: Callable[[JobFacts], Awaitable[bool]] | None = None,
        submit: SubmitRuns[R] | None = None,
    ) -> None:
        self._runs, self._jobs = runs, jobs
        self._submit = submit or SubmitRuns(runs, jobs, workspace, limits)
        self._settle = settle
        self._told_to_stop: set[str] = set()

    async def __call__(self) -> Next:
        active = await self._runs.active()
        if not active:
            self._told_to_stop.clear()
            return Next.LATER
        fresh = [run for run in active if not run.accepted and not self._submit.is_submitting(run)]
        submitted = [run.uid for run in fresh if await self._submit(run)]
        followed = [run for run in active if run.accepted]
        is_settled = not followed or await self._follow(followed)
        return Next.AT_ONCE if submitted or not is_settled else Next.SOON

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
            for run in await self._runs.belonging_to(model.uid):
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
