"""A page of `/scheduler/applications` among 50,000 jobs and among 500, as the scheduling service reads it.

`python bench/application_pages.py [URL]` prints the figures; the database is a new SQLite file unless a URL is given.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from report import Row, announce
from scheduling_service.api.application_mapping import application_to_proto
from scheduling_service.domain.job import Job, Spec, State
from scheduling_service.engines.local.engine import LocalEngine
from scheduling_service.engines.runner import EngineRunner, JobFiles
from scheduling_service.storage.groups import LOCAL_ID, SqlGroups
from scheduling_service.storage.jobs import SqlJobs
from scheduling_service.usecases.describe_attempts import DescribeAttempts
from scheduling_service.usecases.list_applications import ListApplications
from scheduling_service.usecases.ports import Query, SortKey
from scheduling_service.usecases.waiting_reasons import WaitingReasons
from scheduling_service.wiring import MIGRATIONS
from servicekit.database import Database
from servicekit.identity import Identity
from servicekit.times import utc_now

MANY, FEW, PAGE, ROUNDS = 50_000, 500, 50, 15
WAITING_SHARE = 10
LIMIT_MS = 100.0
SUBMITTED_AT_ONCE = 500
ADMIN = Identity("Admin", is_admin=True)


def measure_application_pages(url: str | None = None) -> list[Row]:
    """R6: a page of 50 among 50,000 jobs against one among 500, asked for as usual and in the slowest of all ways."""
    return asyncio.run(_measure(url))


async def _measure(url: str | None) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="dlmesh-pages-") as folder:
        few = await _timed(f"sqlite:///{folder}/few.sqlite", FEW, Path(folder))
        many = await _timed(url or f"sqlite:///{folder}/many.sqlite", MANY, Path(folder))
    slowest = max(many, key=lambda name: many[name])
    for name in sorted(many, key=lambda name: many[name]):
        print(f"  {name:28s} {many[name]:7.2f} ms among {MANY:,} jobs, {few[name]:6.2f} ms among {FEW}")
    ratio = many["newest"] / few["newest"]
    return [
        Row(
            f"page of {PAGE} applications, newest first",
            f"{many['newest']:.2f} ms among {MANY:,} jobs",
            f"{few['newest']:.2f} ms among {FEW}",
            f"{ratio:.2f}",
            f"at most {LIMIT_MS:.0f} ms",
            many["newest"] <= LIMIT_MS,
        ),
        Row(
            f"the slowest of {len(many)} ways to ask ({slowest})",
            f"{many[slowest]:.2f} ms among {MANY:,} jobs",
            f"{few[slowest]:.2f} ms among {FEW}",
            f"{many[slowest] / few[slowest]:.2f}",
            f"at most {LIMIT_MS:.0f} ms",
            many[slowest] <= LIMIT_MS,
        ),
    ]


async def _timed(url: str, count: int, home: Path) -> Mapping[str, float]:
    """Median milliseconds of each way to ask."""
    database = Database(url, "scheduling")
    await database.migrate(MIGRATIONS)
    jobs, groups = SqlJobs(database), SqlGroups(database)
    await groups.ensure_local(4, 0)
    announce(f"{count:,} jobs go into {database.url.get_backend_name()}")
    await _fill(jobs, count)
    files = JobFiles(home / "jobs")
    runner = EngineRunner({"local": LocalEngine(home, warm_pool=False)}, files, "", {}, {})
    listing = ListApplications(jobs, groups, WaitingReasons(groups), DescribeAttempts(runner, files))

    async def page(query: Query) -> None:
        async for application in listing(ADMIN, query):
            application_to_proto(application, "nobody")

    times = {name: await _median_ms(page, query) for name, query in _queries(count).items()}
    await database.close()
    return times


async def _fill(jobs: SqlJobs, count: int) -> None:
    start = utc_now() - timedelta(days=30)
    for first in range(0, count, SUBMITTED_AT_ONCE):
        numbers = range(first, min(first + SUBMITTED_AT_ONCE, count))
        await asyncio.gather(*(jobs.add(_job(number, count, start)) for number in numbers))


def _job(number: int, count: int, start: datetime) -> Job:
    """The last tenth waits, all others have ended; rows are as long as those of trainings."""
    spec = Spec(
        f"training {number % 997}",
        "training",
        f"user-{number % 20}",
        number % 8 + 1,
        ["python", "-m", "training_service.worker.run_training"],
        environment={f"DLMESH_SETTING_{index}": "a path of some length/" * 3 for index in range(12)},
        model=f"model-{number % 50}",
        dataset=f"dataset-{number % 30}",
        framework=("PyTorch", "TensorFlow", "Caffe")[number % 3],
    )
    job = Job(f"{number:032x}", spec, LOCAL_ID, start + timedelta(seconds=number))
    if number < count - count // WAITING_SHARE:
        job.state, job.attempt, job.current_ranks = State.FINISHED, 1, spec.ranks
        job.started_at = job.created_at + timedelta(seconds=number % 60)
        job.ended_at = job.started_at + timedelta(seconds=number % 3600)
    return job


def _queries(count: int) -> Mapping[str, Query]:
    page = Query(length=PAGE)
    sorts = {f"by {key}": replace(page, sort=key, start=count // 2) for key in SortKey}
    return {
        "newest": page,
        "oldest": replace(page, descending=False),
        "last page": replace(page, start=count - PAGE),
        "of one user": replace(page, owner="user-7"),
        "that wait": replace(page, states=["SUBMITTED"]),
        "of a group, last page": replace(page, group_id=LOCAL_ID, start=count - PAGE),
        "one name": replace(page, name="training 99"),
        "search, many hits": replace(page, search="model-7"),
        "search, no hit": replace(page, search="no such job"),
        **sorts,
    }


async def _median_ms(page: Callable[[Query], Awaitable[None]], query: Query) -> float:
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        await page(query)
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


if __name__ == "__main__":
    for row in measure_application_pages(*sys.argv[1:2]):
        print(" | ".join(row.cells))
