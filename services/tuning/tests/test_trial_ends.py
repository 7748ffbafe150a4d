"""Ends of trials are waited for, however many run."""

from __future__ import annotations

import asyncio

from servicekit.jobs import JobFacts
from studies_room import MAX_AWAITED, PlayedJobs
from tuning_service.usecases.trial_ends import TrialEnds

LIMIT_SECONDS = 240


async def test_more_trials_than_one_call_takes_are_waited_for() -> None:
    jobs = PlayedJobs()
    jobs.tells_ends = True
    ids = [f"{number:032x}" for number in range(2 * MAX_AWAITED + 1)]
    jobs.facts = {job_id: JobFacts(job_id, "RUNNING") for job_id in ids}
    ends = TrialEnds(jobs)
    woken: asyncio.Queue[str] = asyncio.Queue()
    ends.watch("many", ids[:-1], lambda: woken.put_nowait("many"))
    ends.watch("one", ids[-1:], lambda: woken.put_nowait("one"))
    async with asyncio.timeout(LIMIT_SECONDS):
        # Of each of the calls that it takes.
        for job_id, study in ((ids[-1], "one"), (ids[0], "many"), (ids[MAX_AWAITED], "many")):
            jobs.end(job_id, "FINISHED")
            assert await woken.get() == study
    await ends.close()
    assert woken.empty()
