"""One application, by any of its names."""

from __future__ import annotations

from servicekit.errors import not_found
from servicekit.identity import Identity

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
        numbers = await self._jobs.search(Query(named=name, group_id=group_id, length=1)) if name else ()
        found = await self._jobs.numbered(numbers)
        if not found:
            raise not_found("application", name)
        job = found[0]
        identity.require_access("application", name, job.spec.owner)
        groups = {each.id: each for each in await self._groups.all()}
        return job, (await self._describe([job], groups)).get(job.id)
