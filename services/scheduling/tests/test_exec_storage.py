"""The table of exec tasks on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from scheduling_service.domain.exec_task import ExecTask, ExecView
from scheduling_service.domain.job import Job, Spec
from scheduling_service.storage.execs import EXECS, SqlExecs
from scheduling_service.storage.groups import LOCAL_ID, SqlGroups
from scheduling_service.storage.jobs import SqlJobs
from scheduling_service.wiring import MIGRATIONS
from servicekit.database import Database
from servicekit.times import utc_now

NOW = utc_now()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, "scheduling")
    await database.migrate(MIGRATIONS)
    await SqlGroups(database).ensure_local(2, 0)
    yield database
    await database.close()


def task(number: int, owner: str = "ann") -> ExecTask:
    spec = Spec("main.py", "exec", owner, 1, ["python", "x"], environment={"A": "1"}, after=["t9"])
    # Two at a time.
    created = NOW + timedelta(seconds=number // 2)
    return ExecTask(f"t{number}", owner, LOCAL_ID, "--exec-start \0 PyTorch", spec, created)


async def test_pages_follow_each_other_newest_first(database: Database) -> None:
    execs = SqlExecs(database)
    for number in range(9):
        await execs.add(task(number, "bob" if number == 4 else "ann"))
    await execs.hide("t7")
    seen: list[ExecView] = []
    while page := await execs.visible(None, seen[-1] if seen else None, 2):
        assert len(page) <= 2
        seen += page
    assert [view.id for view in seen] == ["t8", "t6", "t5", "t4", "t3", "t2", "t1", "t0"]
    assert [view.id for view in await execs.visible("bob", None, 9)] == ["t4"]
    assert seen[0].group_name == "local"
    assert seen[0].arguments == "--exec-start \ufffd PyTorch"


async def test_a_task_is_as_its_job_is(database: Database) -> None:
    execs, jobs = SqlExecs(database), SqlJobs(database)
    await execs.add(task(1))
    await execs.add(task(2))
    assert [each.id for each in await execs.without_job()] == ["t1", "t2"]
    waits = await execs.find("t1")
    assert waits is not None
    assert (waits.state, waits.status_message) == ("SUBMITTED", "")
    (cut_off, _) = await execs.without_job()
    assert cut_off.spec == task(1).spec
    job = await jobs.add(Job("t1", cut_off.spec, LOCAL_ID, NOW))
    assert [each.id for each in await execs.without_job()] == ["t2"]
    for is_started, why in ((False, "instance group local is stopped"), (True, "")):
        await SqlGroups(database).change("local", lambda group, is_=is_started: replace(group, is_started=is_))
        waits = await execs.find("t1")
        assert waits is not None
        assert waits.status_message == why
    job.start(1, NOW)
    await jobs.begin(job)
    # On Spark an attempt may have to wait for room.
    assert job.wait("Spark has no room for the driver")
    await jobs.save(job)
    starts = await execs.find("t1")
    assert starts is not None
    assert (starts.state, starts.status_message) == ("RUNNING", "Spark has no room for the driver")
    job.fail_program("rank 0 exited with code 1", NOW, NOW)
    job.log_tail = "no such layer"
    await jobs.save(job)
    failed = await execs.find("t1")
    assert failed is not None
    assert (failed.state, failed.status_message) == ("ERROR", "rank 0 exited with code 1\nno such layer")
    assert failed.ended_at is not None


async def test_hidden_tasks_are_seen_by_the_loop_only(database: Database) -> None:
    execs = SqlExecs(database)
    for number in range(4):
        await execs.add(task(number, "bob" if number == 3 else "ann"))
    assert await execs.hide_all("ann") == 3
    assert await execs.hide_all("ann") == 0
    assert await execs.find("t0") is None
    assert await execs.hidden() == ["t0", "t1", "t2"]
    assert [each.id for each in await execs.without_job()] == ["t3"]
    assert await execs.known(["t0", "t3", "t7"]) == {"t0", "t3"}
    await execs.remove("t0")
    assert await execs.hidden() == ["t1", "t2"]


async def test_the_table_is_what_migrations_make(database: Database) -> None:
    def indexes(connection: sa.Connection) -> set[str | None]:
        return {index["name"] for index in sa.inspect(connection).get_indexes("execs")}

    async with database.engine.connect() as connection:
        assert await connection.run_sync(indexes) == {index.name for index in EXECS.indexes}
        columns = await connection.run_sync(lambda sync: sa.inspect(sync).get_columns("execs"))
    assert [column["name"] for column in columns] == [column.name for column in EXECS.columns]
