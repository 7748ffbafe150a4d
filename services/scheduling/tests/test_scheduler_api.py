"""Applications as clients see them: filters, every sort key, fields, pages, facts, logs, and who may see what."""

from __future__ import annotations

import asyncio
import getpass
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from dlmesh.scheduling.v1 import jobs_pb2, scheduling_pb2
from scheduling_room import DEADLINE_SECONDS, service, spec, submit, until
from scheduling_service.api.application_mapping import application_to_proto
from scheduling_service.domain.application import reason_of
from scheduling_service.domain.attempt_facts import AttemptFacts, ProcessFacts
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.job import Job, Progress, Rank, Spec, State
from scheduling_service.engines.runner import JobFiles
from scheduling_service.storage import application_search
from scheduling_service.storage.groups import LOCAL_ID, SqlGroups
from scheduling_service.storage.jobs import SqlJobs
from scheduling_service.usecases import list_applications
from scheduling_service.usecases.describe_attempts import MAX_ENDED, DescribeAttempts, Patience
from scheduling_service.usecases.find_application import FindApplication
from scheduling_service.usecases.list_applications import Application, ListApplications
from scheduling_service.usecases.ports import Query, SortKey
from scheduling_service.usecases.waiting_reasons import WaitingReasons
from scheduling_service.wiring import MIGRATIONS
from servicekit.database import Database
from servicekit.errors import ServiceError
from servicekit.identity import Identity
from servicekit.times import utc_now
from testkit.services import ADMIN, ALICE, BOB, acting_as, collect

BOSS = Identity("boss", is_admin=True)
ListRequest = scheduling_pb2.ListApplicationsRequest


async def applications(platform: Any, **query: Any) -> list[scheduling_pb2.ApplicationDetail]:
    return await collect(platform.scheduler.ListApplications(ListRequest(**query)))


async def refused(call: Any, code: grpc.StatusCode, words: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (collect(call) if hasattr(call, "__aiter__") else call)
    assert caught.value.code() is code
    assert words in (caught.value.details() or "")


async def test_applications_are_filtered_sorted_paged_and_private(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        for number, owner in enumerate(("alice", "alice", "bob")):
            await submit(platform, f"j{number}", spec(tmp_path, "pass", name=f"job-{number}", owner=owner))
            await until(platform, f"j{number}", "FINISHED")

        async def ids(**query: Any) -> list[str]:
            return [row.id for row in await applications(platform, **query)]

        with acting_as(ADMIN):
            assert await ids() == ["j2", "j1", "j0"]
            assert await ids(sort="applicationname") == ["j0", "j1", "j2"]
            assert await ids(sort="-applicationname", start=1, length=1) == ["j1"]
            assert await ids(sort="applicationname", order="desc", length=2) == ["j2", "j1"]
            assert await ids(sort="-applicationname", order="desc", length=1) == ["j0"]
            assert await ids(application_id="j0, j2", sort="submittedtime") == ["j0", "j2"]
            assert await ids(application_name="job-1") == ["j1"]
            assert await ids(state="finished", search="JOB-1") == ["j1"]
            assert await ids(state="RUNNING") == []
            assert await ids(driver_id="driver-j1") == ["j1"]
            assert await ids(driver_id="driver-j1", application_id="j0") == []
            assert await ids(sig_id="local", length=1) == ["j2"]
            assert await ids(search="100%") == []
            assert await ids(start=3) == []
            assert await ids(length=0) == []
            for query, code, words in (
                ({"start": 4}, grpc.StatusCode.OUT_OF_RANGE, "0 to 3"),
                ({"start": 4, "sort": "coresused"}, grpc.StatusCode.OUT_OF_RANGE, "0 to 3"),
                ({"start": -1}, grpc.StatusCode.OUT_OF_RANGE, "start"),
                ({"length": -2}, grpc.StatusCode.OUT_OF_RANGE, "length"),
                ({"sort": "colour"}, grpc.StatusCode.INVALID_ARGUMENT, "masterSeqNo"),
                ({"order": "up"}, grpc.StatusCode.INVALID_ARGUMENT, "asc, desc"),
                ({"fields": "state,colour"}, grpc.StatusCode.INVALID_ARGUMENT, "gpumemused.total"),
                ({"state": "ASLEEP"}, grpc.StatusCode.INVALID_ARGUMENT, "KILLED"),
                ({"sig_id": "moon"}, grpc.StatusCode.INVALID_ARGUMENT, "local"),
            ):
                await refused(platform.scheduler.ListApplications(ListRequest(**query)), code, words)
        with acting_as(BOB):
            assert await ids() == ["j2"]
            assert await ids(application_id="j0") == []
            of_group = scheduling_pb2.ListGroupApplicationsRequest(group=LOCAL_ID, state="finished", fields="username")
            (row,) = await collect(platform.scheduler.ListGroupApplications(of_group))
            assert row == scheduling_pb2.ApplicationDetail(owner="bob")
            nowhere = platform.scheduler.ListGroupApplications(
                scheduling_pb2.ListGroupApplicationsRequest(group="moon")
            )
            await refused(nowhere, grpc.StatusCode.NOT_FOUND, "moon")


async def test_groups_are_listed_with_the_fields_that_are_asked_for(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        with acting_as(ALICE):
            request = scheduling_pb2.ListInstanceGroupsRequest
            (group,) = await collect(platform.scheduler.ListInstanceGroups(request()))
            assert (group.id, group.name, group.state, group.version) == (LOCAL_ID, "local", "STARTED", "0.1.0")
            assert (group.execution_user, group.master_url, group.history_server_url) == (
                getpass.getuser(),
                "local",
                "",
            )
            (group,) = await collect(platform.scheduler.ListInstanceGroups(request(fields="uuid, name")))
            assert group == scheduling_pb2.InstanceGroupDetail(id=LOCAL_ID, name="local")
            call = platform.scheduler.ListInstanceGroups(request(fields="id"))
            await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "uuid, name, version")


async def test_a_running_gang_tells_what_it_takes_and_an_ended_one_what_it_was(tmp_path: Path) -> None:
    program = (
        "import os, time\nprint('rank', os.environ['RANK'], flush=True)\n"
        "while not os.path.exists('finish'): time.sleep(0.02)"
    )
    async with service(tmp_path) as platform:
        await submit(
            platform,
            "gang",
            spec(tmp_path, program, ranks=2, application_name="two", framework="PyTorch", model="m", priority=7),
        )
        await until(platform, "gang", "RUNNING")
        await submit(platform, "late", spec(tmp_path, "pass", ranks=2))
        with acting_as(ALICE):
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not (found := await applications(platform, application_id="gang"))[0].executors:
                    await asyncio.sleep(0.02)
            (gang,) = found
            assert (gang.name, gang.type, gang.state, gang.owner, gang.priority) == (
                "two",
                "BATCH",
                "RUNNING",
                "alice",
                7,
            )
            assert (gang.slots, gang.demanded_slots, gang.hosts, gang.master_sequence) == (2, 0, 1, 1)
            assert (gang.schedule_name, gang.master_service, gang.is_shared) == ("fairshare", "local", "false")
            assert (gang.framework, gang.model, gang.gpu_slots) == ("PyTorch", "m", 0)
            assert gang.submitted_at_ms <= gang.updated_at_ms
            assert (gang.ended_at_ms, gang.driver.id, gang.driver.state) == (0, "driver-gang", "RUNNING")
            assert [(rank.id, rank.state) for rank in gang.executors] == [("0", "RUNNING"), ("1", "RUNNING")]
            assert gang.driver.host == gang.executors[1].host != ""
            fields = "demandslots,statusMessage,slots"
            async with asyncio.timeout(DEADLINE_SECONDS):
                # The queue has to come by once.
                while not (
                    late := (await applications(platform, application_id="late", fields=fields))[0]
                ).status_message:
                    await asyncio.sleep(0.02)
            assert (late.demanded_slots, late.slots, late.HasField("id")) == (2, 0, False)
            assert late.status_message == "needs 2 slots at once, 0 of 2 are free; runs next"
        (tmp_path / "data" / "finish").touch()
        await until(platform, "late", "FINISHED")
        with acting_as(ALICE):
            (gang,) = await applications(platform, application_id="gang")
            assert (gang.state, gang.slots, gang.hosts, gang.cores_used) == ("FINISHED", 0, 0, 0)
            assert gang.run_duration_seconds == pytest.approx(
                (gang.ended_at_ms - gang.submitted_at_ms) / 1000, abs=DEADLINE_SECONDS
            )
            assert gang.updated_at_ms == gang.ended_at_ms > 0
            assert [(rank.id, rank.state) for rank in gang.executors] == [("0", "FINISHED"), ("1", "FINISHED")]
            assert Path(gang.executors[1].stdout_path).read_text() == "rank 1\n"


async def download(platform: Any, **request: Any) -> bytes:
    kind = "Executor" if "executor_id" in request else "Driver"
    message = getattr(scheduling_pb2, f"Download{kind}LogRequest")(**{"stream": "stdout", **request})
    pieces = await collect(getattr(platform.scheduler, f"Download{kind}Log")(message))
    assert {piece.content_type for piece in pieces} == {"application/octet-stream"}
    return b"".join(piece.data for piece in pieces)


async def test_logs_are_downloaded_by_any_name_and_by_their_owner_only(tmp_path: Path) -> None:
    program = "import os, sys; print('rank', os.environ['RANK']); print('last'); print('oh', file=sys.stderr)"
    async with service(tmp_path) as platform:
        await submit(platform, "gang", spec(tmp_path, program, ranks=2))
        await until(platform, "gang", "FINISHED")
        with acting_as(ALICE):
            assert (
                await download(platform, group="local", driver_id="driver-gang", executor_id="1") == b"rank 1\nlast\n"
            )
            assert (
                await download(platform, group=LOCAL_ID, driver_id="gang", executor_id="0", tail_lines=1) == b"last\n"
            )
            assert await download(platform, driver_id="gang", executor_id="0", stream="stderr") == b"oh\n"
            # The keeper has nothing to say: an empty log, not an error.
            assert await download(platform, group="local", driver_id="driver-gang") == b""
            for request, code, words in (
                ({"group": "moon", "driver_id": "gang"}, grpc.StatusCode.NOT_FOUND, "moon"),
                ({"group": "local", "driver_id": "nobody"}, grpc.StatusCode.NOT_FOUND, "nobody"),
                ({"driver_id": "gang", "executor_id": "2"}, grpc.StatusCode.NOT_FOUND, "executor"),
                ({"driver_id": "gang", "executor_id": "../0"}, grpc.StatusCode.NOT_FOUND, "executor"),
                ({"driver_id": "gang", "stream": "stdin"}, grpc.StatusCode.INVALID_ARGUMENT, "stdout, stderr"),
                ({"driver_id": "gang", "tail_lines": -1}, grpc.StatusCode.INVALID_ARGUMENT, "tailLines"),
            ):
                with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
                    await download(platform, **request)
                assert caught.value.code() is code
        with acting_as(BOB), pytest.raises(grpc.aio.AioRpcError) as foreign:
            await download(platform, group="local", driver_id="gang")
        assert foreign.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with acting_as(ADMIN):
            assert await download(platform, driver_id="gang", executor_id="0", tail_lines=1) == b"last\n"


async def test_a_log_that_a_program_replaced_by_a_link_or_a_pipe_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "rank-0.out").write_text("a secret")
    program = f"""
import os, pathlib
folder = pathlib.Path(os.environ["DLMESH_JOB_DIR"])
(folder / "rank-0.err").unlink()
os.mkfifo(folder / "rank-0.err")
(folder / "rank-0.out").unlink()
(folder / "rank-0.out").symlink_to({str(tmp_path / "hidden" / "rank-0.out")!r})
"""
    async with service(tmp_path) as platform:
        await submit(platform, "j", spec(tmp_path, program))
        await until(platform, "j", "FINISHED")
        with acting_as(ALICE):
            for stream in ("stdout", "stderr"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await download(platform, driver_id="j", executor_id="0", stream=stream)
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_only_plain_files_below_a_jobs_directory_are_opened(tmp_path: Path) -> None:
    job = Job("j", Spec("n", "exec", "ann", 1, ["true"]), "g", utc_now(), attempt=1)
    files = JobFiles(tmp_path / "jobs")
    attempt = files.attempt(job)
    attempt.mkdir(parents=True)
    (attempt / "log").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "log").write_text("a secret")
    (attempt / "way").symlink_to(tmp_path / "other")
    with files.open_output(job, str(attempt / "log")) as file:
        assert file.read() == b"mine"
    for path in (
        "",
        str(attempt),
        str(attempt / "way" / "log"),
        str(attempt / ".." / ".." / ".." / "other" / "log"),
        str(tmp_path / "other" / "log"),
        str(attempt / "none"),
    ):
        with pytest.raises(OSError):
            files.open_output(job, path)


def test_sort_keys_are_the_fields_of_an_application() -> None:
    assert set(SortKey) == {field.json_name for field in scheduling_pb2.ApplicationDetail.DESCRIPTOR.fields}


class _Facts:
    """A Runner that knows what it was given, and counts how often it is asked."""

    def __init__(self, facts: dict[str, AttemptFacts]) -> None:
        self.facts, self.asked = facts, []

    async def describe(self, job: Job, group: InstanceGroup) -> AttemptFacts:
        self.asked.append(job.id)
        if job.id == "hangs":
            await asyncio.sleep(600)
        if job.id not in self.facts:
            raise OSError("no such attempt")
        return self.facts[job.id]


def _facts(*hosts: str, cores: float = 0.0, ui_port: str = "", gpu: float = 0.0) -> AttemptFacts:
    ranks = [
        ProcessFacts(str(rank), host, "c", cores, 10 * cores, gpu_memory_mb=gpu, gpu_utilization=gpu)
        for rank, host in enumerate(hosts)
    ]
    return AttemptFacts(ProcessFacts("d", hosts[0], cores_used=0.5), tuple(ranks), ui_port)


@asynccontextmanager
async def storage(database_url: str) -> AsyncIterator[tuple[SqlJobs, SqlGroups, Database]]:
    database = Database(database_url, "scheduling")
    await database.migrate(MIGRATIONS)
    groups = SqlGroups(database)
    await groups.ensure_local(4, 0)
    yield SqlJobs(database), groups, database
    await database.close()


GROUPS = (
    InstanceGroup("g1", "alpha", 4, engine="spark", master_url="spark://z:1", policy="fifo", execution_user="zoe"),
    InstanceGroup("g2", "beta", 4, engine="spark", master_url="spark://a:1", history_server_url="http://h"),
)


def _jobs(count: int) -> list[Job]:
    """Jobs whose fields differ in every way that can be sorted by; those of group `gone` have none any more."""
    start = utc_now() - timedelta(hours=1)
    jobs = []
    for number in range(count):
        wanted = Spec(
            f"job {number % 5}",
            "exec",
            ("ann", "bob")[number % 2],
            number % 4 + 1,
            ["true"],
            model=f"m{number % 3}",
            dataset=f"d{number % 4}",
            framework=("PyTorch", "Caffe", "TensorFlow")[number % 3],
            min_ranks=number % 2,
            priority=number % 7 - 3,
        )
        job = Job(f"j{number:04d}", wanted, ("g1", "g2", LOCAL_ID, "gone")[number % 4], start, sequence=number)
        job.state = list(State)[number % 5]
        if job.state is not State.SUBMITTED:
            job.attempt, job.current_ranks = number % 3 + 1, wanted.ranks
            job.started_at = start + timedelta(seconds=number)
            job.application_id = f"app-{number * 7 % count:04d}" if number % 2 else ""
            job.driver_id = f"drv-{number * 3 % count:04d}" if number % 2 else ""
            job.gpus = [[number % 2]] if job.state is State.RUNNING and number % 3 == 0 else []
        if job.state.is_final:
            job.ended_at = job.started_at + timedelta(seconds=number * 11 % 97)  # type: ignore[operator]
        job.progress = Progress(number % 9, 0 if number % 4 == 0 else 9)
        job.reason = f"reason {number % 6}"
        jobs.append(job)
    return jobs


def _shown(application: Application, sort: SortKey) -> Any:
    """The value that clients see, in the order that they see."""
    detail = application_to_proto(application, getpass.getuser())
    name = {field.json_name: field.name for field in detail.DESCRIPTOR.fields}[sort]
    value = getattr(detail, name)
    match sort:
        case SortKey.DRIVER:
            return value.id or f"driver-{application.job.id}"
        case SortKey.EXECUTORS:
            return application.job.current_ranks
        case SortKey.UPDATED if not application.job.ended_at:
            # What goes on is newer with every look, all of it alike.
            return 1e15
        case SortKey.DURATION if not application.job.ended_at:
            # Longer with every look; those of the test differ by a second, beyond what a look takes.
            return value // 60 * 60
        case SortKey.PROGRESS:
            return value if detail.HasField("progress") else -1
    return value


@pytest.mark.slow
async def test_every_field_sorts_as_it_is_shown(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lists go on over several reads.
    monkeypatch.setattr(list_applications, "ROWS_AT_ONCE", 25)
    async with storage(database_url) as (jobs, groups, _):
        for group in GROUPS:
            await groups.add(group)
        made = _jobs(60)
        for job in made:
            await jobs.add(job)
        facts = {
            job.id: _facts(
                *"abc"[: job.sequence % 3 + 1], cores=job.sequence % 11, ui_port=str(4040 + job.sequence % 5)
            )
            for job in made
            if job.attempt
        }
        describe = DescribeAttempts(_Facts(facts), JobFiles(tmp_path))  # type: ignore[arg-type]
        listing = ListApplications(jobs, groups, WaitingReasons(groups), describe)
        for sort, descending in itertools.product(SortKey, (False, True)):
            query = Query(sort=sort, descending=descending)
            everything = await collect(listing(BOSS, query))
            assert sorted(each.job.id for each in everything) == [job.id for job in made], sort
            values = [_shown(each, sort) for each in everything]
            assert values == sorted(values, reverse=descending), sort
            paged = [
                each.job.id
                for start in range(0, 60, 17)
                for each in await collect(listing(BOSS, replace(query, start=start, length=17)))
            ]
            assert paged == [each.job.id for each in everything], sort
            some_of_hers = replace(query, states=["RUNNING", "ERROR"], start=2, length=4)
            some = await collect(listing(Identity("ann"), some_of_hers))
            assert {each.job.spec.owner for each in some} == {"ann"}, sort
            assert {each.job.state for each in some} <= {State.RUNNING, State.ERROR}, sort
            assert len(some) == 4, sort


async def test_queries_find_jobs_by_what_engines_call_them(database_url: str) -> None:
    async with storage(database_url) as (jobs, _, _):
        for job in _jobs(20):
            await jobs.add(job)

        async def found(**query: Any) -> list[str]:
            return sorted(job.id for job in await jobs.numbered(await jobs.search(Query(**query))))

        assert await found(application_ids=["app-0007", "j0002"]) == ["j0001", "j0002"]
        assert await found(driver_id="drv-0003") == ["j0001"]
        assert await found(driver_id="driver-j0001") == ["j0001"]
        assert await found(named="drv-0003") == await found(named="app-0007") == await found(named="j0001") == ["j0001"]
        assert await found(named="driver-j0001", group_id="g1") == []
        assert await found(search="APP-0007") == ["j0001"]
        assert await found(search="_") == []
        assert await jobs.count(Query(owner="bob", states=["RUNNING"])) == 2


async def test_an_application_is_found_though_another_calls_itself_the_same(tmp_path: Path, database_url: str) -> None:
    async with storage(database_url) as (jobs, groups, _):
        for number, (owner, called) in enumerate(
            (("ann", ""), ("eve", "j0"), ("eve", "driver-j0"), ("ann", "app-7"), ("eve", "app-7"))
        ):
            job = Job(f"j{number}", Spec("n", "exec", owner, 1, ["true"]), LOCAL_ID, utc_now())
            job.application_id = job.driver_id = called
            await jobs.add(job)
        find = FindApplication(jobs, groups, DescribeAttempts(_Facts({}), JobFiles(tmp_path)))  # type: ignore[arg-type]
        for name, found in (("j0", "j0"), ("driver-j0", "j0"), ("app-7", "j3")):
            assert (await find(Identity("ann"), "", name))[0].id == found
            assert (await find(Identity("ann"), "local", name))[0].id == found
        assert (await find(BOSS, "", "j0"))[0].id == "j0"
        assert (await find(Identity("eve"), "", "app-7"))[0].id == "j4"
        for name in ("j4", "app-7"):
            with pytest.raises(ServiceError, match="another user"):
                await find(Identity("bob"), "", name)


async def test_a_page_of_many_jobs_reads_only_the_page(tmp_path: Path, database_url: str) -> None:
    async with storage(database_url) as (jobs, _, _):
        now = utc_now()
        for number in range(30):
            wanted = Spec(f"job {number % 3}", "exec", "ann", number % 2 + 1, ["true"], model=f"m{number % 2}")
            await jobs.add(Job(f"j{number}", wanted, "g", now))
        page = await jobs.numbered(await jobs.search(Query(start=5, length=10)))
        assert [job.id for job in page] == [f"j{number}" for number in range(24, 14, -1)]
        found = Query(owner="ann", search="JOB 2", sort=SortKey.MODEL, descending=False, length=6)
        assert [job.spec.model for job in await jobs.numbered(await jobs.search(found))] == ["m0"] * 5 + ["m1"]
        assert await jobs.count(found) == 10
        assert await jobs.count(Query(owner="bob")) == 0


# Sorted in the entries of an index, for want of one in their order.
IN_ENTRIES = (
    *(SortKey.ID, SortKey.DRIVER, SortKey.EXECUTORS, SortKey.SLOTS, SortKey.DEMANDED_SLOTS, SortKey.PRIORITY),
    *(SortKey.DRIVER_USER, SortKey.EXECUTOR_USER, SortKey.UPDATED, SortKey.MASTER_URL, SortKey.SCHEDULE),
    *(SortKey.DURATION, SortKey.MASTER_SEQUENCE, SortKey.MASTER_SERVICE, SortKey.GROUP_NAME),
    SortKey.HISTORY_SERVER_URL,
)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (Query(length=50), "sequence"),
        (Query(length=50, start=900, sort=SortKey.NAME), "ix_jobs_name"),
        (Query(length=50, sort=SortKey.ENDED, descending=False), "ix_jobs_ended_at"),
        *((Query(length=50, sort=key), "SCAN jobs USING COVERING INDEX") for key in IN_ENTRIES),
        (Query(length=50, search="x"), "ix_jobs_lists"),
        (Query(length=50, sort=SortKey.MODEL), "ix_jobs_model"),
        (Query(length=50, sort=SortKey.DATASET), "ix_jobs_dataset"),
        (Query(length=50, sort=SortKey.FRAMEWORK), "ix_jobs_framework"),
        (Query(length=50, sort=SortKey.STATE), "ix_jobs_state_sequence"),
        (Query(length=50, sort=SortKey.OWNER), "ix_jobs_owner_sequence"),
        (Query(length=50, sort=SortKey.GROUP_ID), "ix_jobs_group_id"),
        (Query(length=50, owner="ann"), "ix_jobs_owner_sequence"),
        (Query(length=50, states=["ERROR"]), "ix_jobs_state_sequence"),
        (Query(length=50, group_id="g1", start=100), "ix_jobs_group_id"),
        (Query(length=1, named="app-0007"), "ix_jobs_application_id"),
        (Query(length=1, driver_id="drv-0007"), "ix_jobs_driver_id"),
    ],
)
async def test_pages_are_cut_by_an_index(tmp_path: Path, query: Query, index: str) -> None:
    async with storage(f"sqlite:///{tmp_path / 'plan.sqlite'}") as (_, _, database):
        from sqlalchemy.dialects import sqlite

        statement = application_search.numbers(query).compile(
            dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}
        )
        async with database.session(read_only=True) as session:
            plan = [row.detail for row in await session.execute(sa.text(f"EXPLAIN QUERY PLAN {statement}"))]
    assert any(index in step or (index == "sequence" and "sqlite_autoindex_jobs_2" in step) for step in plan), plan
    # No rows are read but those of the page.
    assert not [step for step in plan if step == "SCAN jobs"], plan


async def test_engines_are_asked_for_a_bounded_time_and_about_a_bounded_number(tmp_path: Path) -> None:
    now = utc_now()

    def ended(job_id: str) -> Job:
        job = Job(job_id, Spec("n", "exec", "ann", 2, ["true"]), "g", now, attempt=1, current_ranks=2)
        job.state = State.FINISHED
        return job

    running = [replace_state(ended(name), State.RUNNING) for name in ("hangs", "fails", "runs")]
    waiting = Job("waits", Spec("n", "exec", "ann", 1, ["true"]), "g", now)
    many = [ended(f"e{number}") for number in range(MAX_ENDED + 50)]
    orphan = ended("orphan")
    orphan.group_id = "gone"
    runner = _Facts({"runs": _facts("h", cores=2.0)} | {job.id: _facts("h") for job in many})
    files = JobFiles(tmp_path)
    describe = DescribeAttempts(runner, files)  # type: ignore[arg-type]
    patience, groups = Patience(seconds=0.2), {"g": InstanceGroup("g", "g", 4)}
    async with asyncio.timeout(10):
        facts = await describe([waiting, *many, orphan, *running], groups, patience)
    assert runner.asked[:3] == ["hangs", "fails", "runs"]
    assert len(runner.asked) == 3 + MAX_ENDED
    assert facts["runs"].executors[0].cores_used == 2.0
    # What nobody could tell is known from the row: ranks and their files.
    for job_id in ("hangs", "fails", "orphan", many[-1].id):
        assert [rank.stdout for rank in facts[job_id].executors] == [
            str(tmp_path / job_id / "attempt-1" / f"rank-{rank}.out") for rank in range(2)
        ]
    assert "waits" not in facts
    # The rest of the list has no patience left, neither for those that have ended nor for those that hang.
    assert (patience.seconds, patience.ended) == (0.0, 0)
    runner.asked.clear()
    await describe([*many[:5], running[0]], groups, patience)
    assert runner.asked == ["hangs"]


def replace_state(job: Job, state: State) -> Job:
    job.state = state
    return job


def test_who_waits_unseen_is_behind_the_one_that_runs_next() -> None:
    job = Job("j", Spec("n", "exec", "ann", 1, ["true"]), "g", utc_now())
    assert reason_of(job, "gang") == "behind gang, which runs next"
    assert reason_of(job, "") == ""
    assert reason_of(job, "gang", "nights") == reason_of(job, "", "nights") == "instance group nights is stopped"
    job.wait("over quota")
    assert reason_of(job, "gang") == "over quota"
    job.wait("")
    job.attempt, job.reason = 1, "rank 0 exited with code 1; restart 1 of 2"
    assert reason_of(job, "gang") == "rank 0 exited with code 1; restart 1 of 2 (behind gang, which runs next)"
    job.wait("needs 2 slots")
    assert reason_of(job, "gang") == "rank 0 exited with code 1; restart 1 of 2 (needs 2 slots)"
    job.state, job.reason = State.RUNNING, ""
    assert reason_of(job, "gang") == "needs 2 slots"
    job.wait("")
    assert reason_of(job, "gang") == ""


async def test_jobs_and_applications_say_the_same_reason(tmp_path: Path) -> None:
    async with service(tmp_path, slots=1) as platform:
        await submit(platform, "first", spec(tmp_path, "import time; time.sleep(600)", name="first"))
        await until(platform, "first", "RUNNING")
        for number in range(3):
            await submit(platform, f"w{number}", spec(tmp_path, "pass", name=f"w{number}"))
        last = "behind w0, which runs next"
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (await until(platform, "w2", "SUBMITTED")).reason != last:
                await asyncio.sleep(0.02)
        with acting_as(ALICE):
            (row,) = await applications(platform, application_id="w2", fields="statusMessage")
        assert row.status_message == last
        for job_id in ("w2", "w1", "w0", "first"):
            await platform.jobs.StopJob(jobs_pb2.StopJobRequest(job_id=job_id))
        await until(platform, "first", "KILLED")


def test_ranks_end_each_in_their_own_way() -> None:
    job = Job("j", Spec("n", "exec", "ann", 4, ["true"]), "g", utc_now(), attempt=1, current_ranks=4)
    job.state, job.ended_at = State.ERROR, utc_now()
    job.ranks = [Rank(0, 1, 0), Rank(1, 2, 3), Rank(2, 3, -9), Rank(3, 4, None)]
    facts = AttemptFacts(ProcessFacts("d"), tuple(ProcessFacts(str(rank)) for rank in range(4)))
    detail = application_to_proto(Application(job, "", None, facts), "me")
    assert [rank.state for rank in detail.executors] == ["FINISHED", "ERROR", "KILLED", "ERROR"]
    # Its group is gone: what that alone knew is unset.
    assert (detail.instance_group_id, detail.HasField("instance_group_name")) == ("g", False)


def test_sums_and_hosts_of_a_running_application() -> None:
    job = Job("j", Spec("n", "exec", "ann", 3, ["true"]), "g", utc_now(), attempt=1, current_ranks=3)
    job.state, job.started_at, job.gpus = State.RUNNING, utc_now(), [[0, 1], [1], [4]]
    group = InstanceGroup("g", "grp", 4, policy="fifo", execution_user="zoe")
    facts = _facts("a", "a", "b", cores=2.0, ui_port="4040", gpu=30.0)
    detail = application_to_proto(Application(job, "", group, facts), "me")
    assert (detail.hosts, detail.cores_used, detail.memory_used_mb, detail.gpu_slots) == (2, 6.5, 60.0, 3)
    assert (detail.gpu_memory_used_mb, detail.gpu_utilization, detail.ui_port) == (90.0, 90.0, "4040")
    assert (detail.schedule_name, detail.driver_execution_user, detail.executor_execution_user) == (
        "fifo",
        "zoe",
        "zoe",
    )
    assert detail.executors[2].container_id == "c"
