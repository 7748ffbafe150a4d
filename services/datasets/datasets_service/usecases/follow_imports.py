"""Make written intent true: submit, follow and settle imports."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from servicekit.errors import Code, ServiceError
from servicekit.reconcile import Next
from servicekit.times import utc_now

from datasets_service.domain.dataset import Dataset, JobFacts
from datasets_service.usecases.ports import Files, Jobs, Storage

log = logging.getLogger(__name__)


class FollowImports:
    """One pass over the imports under way; safe to be killed anywhere and to repeat.

    Files are settled before the status says so: what reads FINISHED is there, what reads STOPPED or FAILED has left
    nothing.
    """

    def __init__(self, storage: Storage, jobs: Jobs, files: Files) -> None:
        self._storage, self._jobs, self._files = storage, jobs, files

    async def __call__(self) -> Next:
        async with self._storage.snapshot() as datasets:
            active = await datasets.list_active()
        waiting = [dataset for dataset in active if not dataset.accepted]
        submitted = [dataset for dataset in waiting if await self._submit(dataset)]
        if followed := [dataset for dataset in active if dataset.accepted and dataset not in submitted]:
            await self._follow(followed)
        if submitted:
            return Next.AT_ONCE
        return Next.SOON if active else Next.LATER

    async def _submit(self, dataset: Dataset) -> bool:
        try:
            if dataset.stop_requested:
                await self._stop_unaccepted(dataset)
            else:
                await self._jobs.submit(await self._files.prepare(dataset))
                dataset.accepted = True
        except ServiceError as error:
            log.warning("cannot submit the import of dataset %s: %s", dataset.name, error.message)
            if error.code is not Code.INVALID_ARGUMENT:
                # The peer is away, restarting or in trouble: the next pass tries again.
                return False
            dataset.fail(error.message, utc_now())
        except OSError as error:
            log.exception("cannot prepare the import of dataset %s", dataset.name)
            dataset.fail(f"the import cannot be prepared: {error}", utc_now())
        await self._save(dataset)
        return dataset.accepted

    async def _stop_unaccepted(self, dataset: Dataset) -> None:
        # A pass before this one may have submitted it and been killed.
        try:
            await self._jobs.stop(dataset.job_id)
            dataset.accepted = True
        except ServiceError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            dataset.stopped_before_start(utc_now())

    async def _follow(self, followed: Sequence[Dataset]) -> None:
        jobs = await self._jobs.get([dataset.job_id for dataset in followed])
        for dataset in followed:
            try:
                await self._settle(dataset, jobs.get(dataset.job_id))
            except Exception:
                log.exception("cannot follow the import of dataset %s", dataset.name)

    async def _settle(self, dataset: Dataset, job: JobFacts | None) -> None:
        before = (dataset.status, dataset.status_message, dataset.driver_id, dataset.started_at)
        if job is None:
            dataset.fail("the scheduling service no longer knows the job of this import", utc_now())
        else:
            dataset.follow(job)
            if job.state == "FINISHED":
                await self._finish(dataset, job)
        if before != (dataset.status, dataset.status_message, dataset.driver_id, dataset.started_at):
            await self._save(dataset)
        if dataset.stop_requested and not dataset.status.is_final:
            await self._jobs.stop(dataset.job_id)

    async def _finish(self, dataset: Dataset, job: JobFacts) -> None:
        records = await self._files.read_published(dataset.uid)
        if records is None:
            dataset.fail("the import ended without publishing records", job.ended_at)
        else:
            dataset.finish(records, job.ended_at)

    async def _save(self, dataset: Dataset) -> None:
        if dataset.status.is_final:
            keep = dataset.records is not None
            await (self._files.remove_staging(dataset.uid) if keep else self._files.remove(dataset.uid))
        async with self._storage.transaction() as datasets:
            await datasets.save_state(dataset)
