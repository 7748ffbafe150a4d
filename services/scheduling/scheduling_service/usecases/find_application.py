"""One application, by any of its names."""

from __future__ import annotations

from dataclasses import replace

from servicekit.errors import not_found
from servicekit.identity import Identity

from scheduling_service.domain.application import job_of_driver
from scheduling_service.domain.attempt_facts import AttemptFacts
from scheduling_service.domain.job import Job
from scheduling_service.usecases.describe_attempts import DescribeAttempts
from scheduling_service.usecases.ports import Groups, Jobs, Query


class FindApplication:
    """For its owner and for administrators."""

    def __init__(self, jobs: Jobs, groups: Groups, describe: DescribeAttempts) -> None:
        self._jobs, self._groups, self._describe = jobs, groups, describe

    async def __call__(self, identity: Identity, group: str, name: str) -> tuple[Job, AttemptFacts | None]:
        """The job that `name` - the id of its driver, its application or its own - means in `group`, any when empty.

        With what is known of its processes, None before there are any. 404, or 403 when it is another user's.
        """
        group_id = (await self._groups.find(group)).id if group else None
        job = await self._find(identity, group_id, name)
        if job is None:
            raise not_found("application", name)
        identity.require_access("application", name, job.spec.owner)
        groups = {each.id: each for each in await self._groups.all()}
        return job, (await self._describe([job], groups)).get(job.id)

    async def _find(self, identity: Identity, group_id: str | None, name: str) -> Job | None:
        """A program may call its application and its driver what it likes, also as those of others: so the platform's
        own id comes first, and then what the caller may see."""
        for job in await self._jobs.find([job_of_driver(name)]):
            if group_id in (None, job.group_id):
                return job
        if not name:
            return None
        named = Query(named=name, group_id=group_id, length=1)
        mine = () if identity.is_admin else (replace(named, owner=identity.user),)
        for query in (*mine, named):
            for job in await self._jobs.numbered(await self._jobs.search(query)):
                return job
        return None
