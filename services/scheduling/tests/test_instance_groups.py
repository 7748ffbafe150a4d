"""Instance groups by their service: made, changed, stopped, shared, removed; refusals say what is allowed."""

from __future__ import annotations

import asyncio
import dataclasses
import getpass
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.scheduling.v1 import jobs_pb2, scheduling_pb2
from scheduling_room import DEADLINE_SECONDS, service, spec, submit, until
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.job import Job, Spec, State
from scheduling_service.storage.groups import LOCAL_ID, SqlGroups
from scheduling_service.storage.jobs import SqlJobs
from scheduling_service.wiring import MIGRATIONS
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from servicekit.times import utc_now
from testkit.services import ADMIN, ALICE, acting_as, collect

Group = scheduling_pb2.InstanceGroupSettings


async def create(platform: Any, **settings: Any) -> scheduling_pb2.InstanceGroupSettings:
    request = scheduling_pb2.CreateInstanceGroupRequest(group=Group(**settings))
    return await platform.groups.CreateInstanceGroup(request)


async def update(platform: Any, name: str, /, **settings: Any) -> scheduling_pb2.InstanceGroupSettings:
    request = scheduling_pb2.UpdateInstanceGroupRequest(name=name, group=Group(**settings))
    return await platform.groups.UpdateInstanceGroup(request)


async def get(platform: Any, name: str) -> scheduling_pb2.InstanceGroupSettings:
    return await platform.groups.GetInstanceGroupSettings(scheduling_pb2.GetInstanceGroupSettingsRequest(name=name))


async def delete(platform: Any, name: str) -> None:
    await platform.groups.DeleteInstanceGroup(scheduling_pb2.DeleteInstanceGroupRequest(name=name))


async def switch(platform: Any, verb: str, name: str) -> None:
    await getattr(platform.groups, f"{verb}InstanceGroup")(
        getattr(scheduling_pb2, f"{verb}InstanceGroupRequest")(name=name)
    )


async def share(platform: Any, name: str, user: str, /, **values: Any) -> scheduling_pb2.UserShare:
    request = scheduling_pb2.SetUserShareRequest(name=name, user=user, share=scheduling_pb2.UserShare(**values))
    return await platform.groups.SetUserShare(request)


async def shares(platform: Any, name: str) -> dict[str, tuple[float, int]]:
    rows = await collect(platform.groups.ListUserShares(scheduling_pb2.ListUserSharesRequest(name=name)))
    return {row.user: (row.weight, row.max_slots) for row in rows}


async def test_a_group_lives_through_a_restart(tmp_path: Path, database_url: str) -> None:
    async with service(tmp_path, database_url) as platform:
        with acting_as(ADMIN):
            made = await create(platform, name="nights", slots_per_host=3, policy="fifo", max_slots_per_user=2)
            assert (made.engine, made.hosts, made.gpus_per_host, made.state) == ("local", 1, 0, "STARTED")
            await share(platform, "nights", "ann", weight=2.5, max_slots=1)
            await share(platform, "nights", "bob", max_slots=4)
            await share(platform, "nights", "ann", weight=3)
            await switch(platform, "Stop", "nights")
    async with service(tmp_path, database_url) as platform:
        with acting_as(ALICE):
            found = await get(platform, made.id)
            assert (found.name, found.state, found.slots_per_host, found.policy) == ("nights", "STOPPED", 3, "fifo")
            assert await shares(platform, "nights") == {"ann": (3.0, 0), "bob": (1.0, 4)}
            listed = await collect(
                platform.groups.ListInstanceGroupSettings(scheduling_pb2.ListInstanceGroupSettingsRequest())
            )
            assert [(group.name, group.slots_per_host) for group in listed] == [("local", 2), ("nights", 3)]
        with acting_as(ADMIN):
            changed = await update(platform, "nights", max_slots_per_user=0, execution_user=getpass.getuser())
            asked = await platform.jobs.GetInstanceGroup(jobs_pb2.GetInstanceGroupRequest(name_or_id="nights"))
            assert asked.instance_group.execution_user == getpass.getuser()
            # What is not given stays, and what is given may be 0.
            assert (changed.policy, changed.max_slots_per_user, changed.slots_per_host) == ("fifo", 0, 3)
            assert (await update(platform, "nights", execution_user="")).execution_user == ""
            # What was read can be written back.
            group = Group()
            group.CopyFrom(await get(platform, "nights"))
            request = scheduling_pb2.UpdateInstanceGroupRequest(name="nights", group=group)
            assert await platform.groups.UpdateInstanceGroup(request) == group
            await platform.groups.DeleteUserShare(scheduling_pb2.DeleteUserShareRequest(name="nights", user="ann"))
            assert await shares(platform, "nights") == {"bob": (1.0, 4)}
            await delete(platform, "nights")
            with pytest.raises(grpc.aio.AioRpcError) as gone:
                await shares(platform, "nights")
            assert gone.value.code() is grpc.StatusCode.NOT_FOUND


GOOD = {"name": "fine", "slots_per_host": 2}
SPARK = {"name": "fine", "slots_per_host": 2, "engine": "spark", "master_url": "spark://host:7077"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**GOOD, "name": "a/b"}, "name: 'a/b'"),
        ({**GOOD, "name": ""}, "name: ''"),
        ({**GOOD, "name": LOCAL_ID}, "allowed: a name that is no id"),
        ({**GOOD, "name": "0123456789ABCDEF0123456789abcdef"}, "allowed: a name that is no id"),
        ({**GOOD, "id": "mine"}, "id: 'mine'"),
        ({**GOOD, "state": "STOPPED"}, "state"),
        ({**GOOD, "state": "asleep"}, "STARTED, STOPPED"),
        ({**GOOD, "engine": "mesos"}, "engine: 'mesos' is not valid; allowed: one of local"),
        ({**GOOD, "policy": "luck"}, "fairshare, fifo, priority"),
        ({"name": "fine"}, "slotsPerHost: 0 is not valid; allowed: 1 to 10000"),
        ({**GOOD, "slots_per_host": 10_001}, "slotsPerHost"),
        ({**GOOD, "hosts": 0}, "hosts: 0"),
        ({**GOOD, "hosts": 2}, "hosts: 2 is not valid; allowed: 1"),
        ({**GOOD, "gpus_per_host": -1}, "gpusPerHost: -1"),
        ({**GOOD, "gpus_per_host": 3}, "gpusPerHost: 3 is not valid; allowed: 0 to 2, the GPUs of this machine"),
        ({**GOOD, "max_slots_per_user": -1}, "maxSlotsPerUser: -1"),
        ({**GOOD, "master_url": "spark://h:1"}, "masterUrl"),
        ({**GOOD, "history_server_url": "ftp://h"}, "historyServerUrl"),
        ({**GOOD, "history_server_url": "http://h"}, "historyServerUrl"),
        ({**GOOD, "execution_user": "nobody-of-this-name"}, "executionUser"),
        ({**GOOD, "execution_user": "../root"}, "executionUser"),
        ({**GOOD, "engine_options": {"spark.x": "1"}}, "engineOptions: 'spark.x'"),
        ({**SPARK, "master_url": ""}, "masterUrl: ''"),
        ({**SPARK, "master_url": "mesos://h:1"}, "spark://HOST:PORT, k8s://"),
        ({**SPARK, "master_url": "spark://h:1 --evil"}, "masterUrl"),
        ({**SPARK, "hosts": 100_001}, "hosts"),
        ({**SPARK, "hosts": 1001, "slots_per_host": 1000}, "slotsPerHost: 1000 is not valid; allowed: at most 1000000"),
        ({**SPARK, "hosts": 1001, "gpus_per_host": 100}, "gpusPerHost: 100 is not valid; allowed: at most 100000 GPUs"),
        *(
            ({**SPARK, "engine_options": {option: "8"}}, f"engineOptions: '{option}' is not valid; allowed: settings")
            for option in (
                *("spark.master", "spark.cores.max", "spark.task.maxFailures", "spark.executor.cores"),
                *("spark.dynamicAllocation.enabled", "spark.driver.supervise", "spark.submit.deployMode"),
            )
        ),
        ({**SPARK, "history_server_url": "http://h:99999999"}, "historyServerUrl"),
        ({**SPARK, "engine_options": {"PATH": "1"}}, "engineOptions"),
        ({**SPARK, "engine_options": {"spark.x": "a\nb"}}, "engineOptions: 'spark.x'"),
        ({**SPARK, "engine_options": {"spark.x": "y" * 5000}}, "4000"),
    ],
)
async def test_what_no_group_may_be_is_refused_by_its_field(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    async with service(tmp_path, gpus=2) as platform:
        with acting_as(ADMIN), pytest.raises(grpc.aio.AioRpcError) as caught:
            await create(platform, **settings)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in (caught.value.details() or "")


async def test_groups_of_spark_are_made_with_their_settings(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        with acting_as(ADMIN):
            for number, url in enumerate(("spark://h:7077", "yarn", "k8s://h:6443")):
                values = {
                    **SPARK,
                    "name": f"s{number}",
                    "master_url": url,
                    "hosts": 100,
                    "history_server_url": "http://h:1",
                }
                assert (await create(platform, **values)).master_url == url
            await update(platform, "s0", engine_options={"spark.executor.memory": "2g", "spark.x": "1"})
            changed = await update(platform, "s0", engine_options={"spark.x": "", "spark.y": "2"})
            assert dict(changed.engine_options) == {"spark.executor.memory": "2g", "spark.y": "2"}
            found = await collect(platform.scheduler.ListInstanceGroups(scheduling_pb2.ListInstanceGroupsRequest()))
            assert {group.name: group.master_url for group in found}["s2"] == "k8s://h:6443"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"slots_per_host": 5},
            "slotsPerHost: 5 is not valid; allowed: 2: the group local is this machine; DLMESH_SLOTS",
        ),
        ({"hosts": 2}, "hosts: 2"),
        ({"gpus_per_host": 1}, "gpusPerHost: 1"),
        ({"engine": "spark", "master_url": "spark://h:1"}, "engine: 'spark'"),
        ({"name": "other"}, "name: 'other' is not valid; allowed: local, which stays"),
        ({"id": "other"}, "id: 'other'"),
        ({"state": "STOPPED"}, "start and stop change it"),
    ],
)
async def test_this_machine_stays_what_it_is(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    async with service(tmp_path) as platform:
        with acting_as(ADMIN):
            before = await get(platform, "local")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await update(platform, "local", **settings)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert words in (caught.value.details() or "")
            assert await get(platform, "local") == before
            with pytest.raises(grpc.aio.AioRpcError, match="stays") as kept:
                await delete(platform, LOCAL_ID)
            assert kept.value.code() is grpc.StatusCode.ABORTED
            assert (await update(platform, "local", policy="priority", slots_per_host=2)).policy == "priority"


async def test_only_administrators_change_groups_and_what_is_not_there_is_404(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {
        "create": lambda platform: create(platform, **GOOD),
        "update": lambda platform: update(platform, "moon", policy="fifo"),
        "delete": lambda platform: delete(platform, "moon"),
        "start": lambda platform: switch(platform, "Start", "moon"),
        "stop": lambda platform: switch(platform, "Stop", "moon"),
        "share": lambda platform: share(platform, "moon", "ann", weight=1),
        "unshare": lambda platform: platform.groups.DeleteUserShare(
            scheduling_pb2.DeleteUserShareRequest(name="moon", user="ann")
        ),
    }
    async with service(tmp_path) as platform:
        for change in changes.values():
            with acting_as(ALICE), pytest.raises(grpc.aio.AioRpcError, match="only an administrator") as caught:
                await change(platform)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with acting_as(ADMIN), caplog.at_level(logging.INFO, "dlmesh.audit"):
            await changes.pop("create")(platform)
            for change in (*changes.values(), lambda platform: get(platform, "moon")):
                with pytest.raises(grpc.aio.AioRpcError, match="moon") as caught:
                    await change(platform)
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            with pytest.raises(grpc.aio.AioRpcError, match="exists already") as twice:
                await create(platform, **GOOD)
            assert twice.value.code() is grpc.StatusCode.ALREADY_EXISTS
    rows = [json.loads(record.message) for record in caplog.records if record.name == "dlmesh.audit"]
    assert [row["result"] for row in rows] == ["OK", *["NOT_FOUND"] * len(changes), "ALREADY_EXISTS"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"weight": 0.0}, "weight: 0.0"),
        ({"weight": -1.0}, "weight"),
        ({"weight": float("nan")}, "0.001 to 1000"),
        ({"weight": float("inf")}, "weight"),
        ({"max_slots": -1}, "maxSlots: -1"),
        ({"user": "bob"}, "user: 'bob'"),
    ],
)
async def test_senseless_shares_are_refused(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    async with service(tmp_path) as platform:
        with acting_as(ADMIN), pytest.raises(grpc.aio.AioRpcError) as caught:
            await share(platform, "local", "ann", **values)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in (caught.value.details() or "")
        with acting_as(ALICE):
            assert await shares(platform, "local") == {}


async def test_a_stopped_group_lets_what_runs_end_and_starts_nothing(tmp_path: Path) -> None:
    program = "import os, time\nwhile not os.path.exists('finish'): time.sleep(0.02)"
    async with service(tmp_path) as platform:
        with acting_as(ADMIN):
            await create(platform, **GOOD)
        runs = spec(tmp_path, program, instance_group="fine")
        await submit(platform, "runs", runs)
        await until(platform, "runs", "RUNNING")
        with acting_as(ADMIN):
            await switch(platform, "Stop", "fine")
            with pytest.raises(grpc.aio.AioRpcError, match="jobs that have not ended") as used:
                await delete(platform, "fine")
            assert used.value.code() is grpc.StatusCode.ABORTED
        await submit(platform, "waits", spec(tmp_path, "pass", instance_group="fine"))
        (tmp_path / "data" / "finish").touch()
        await until(platform, "runs", "FINISHED")
        async with asyncio.timeout(DEADLINE_SECONDS):
            while "is stopped" not in (waiting := await until(platform, "waits", "SUBMITTED")).reason:
                await asyncio.sleep(0.02)
        assert waiting.attempt == 0
        # It is what all wait for.
        await submit(platform, "behind", spec(tmp_path, "pass", instance_group="fine"))
        assert (await until(platform, "behind", "SUBMITTED")).reason == "instance group fine is stopped"
        with acting_as(ADMIN):
            await switch(platform, "Start", "fine")
        await until(platform, "waits", "FINISHED")
        await until(platform, "behind", "FINISHED")
        with acting_as(ADMIN):
            await delete(platform, "fine")
        # Applications outlive their group.
        with acting_as(ALICE):
            rows = await collect(platform.scheduler.ListApplications(scheduling_pb2.ListApplicationsRequest()))
        assert [(row.id, row.HasField("instance_group_name")) for row in rows] == [
            *(("behind", False), ("waits", False), ("runs", False))
        ]


async def test_a_job_that_came_while_its_group_was_deleted_ends_and_holds_up_nobody(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'db' / 'scheduling.sqlite'}", "scheduling")
    await database.migrate(MIGRATIONS)
    await SqlJobs(database).add(Job("lost", Spec("n", "exec", "ann", 1, ["true"]), "gone", utc_now()))
    await database.close()
    async with service(tmp_path) as platform:
        await submit(platform, "good", spec(tmp_path, "pass"))
        await until(platform, "good", "FINISHED")
        lost = await until(platform, "lost", "ERROR")
        assert (lost.reason, lost.attempt) == ("its instance group was deleted", 0)


async def test_a_quota_that_an_administrator_lifts_lets_jobs_start(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        with acting_as(ADMIN):
            await create(platform, **GOOD, max_slots_per_user=1)
        for name in ("a", "b"):
            await submit(platform, name, spec(tmp_path, "import time; time.sleep(600)", instance_group="fine"))
        await until(platform, "a", "RUNNING")
        with acting_as(ADMIN):
            await update(platform, "fine", max_slots_per_user=2)
        await until(platform, "b", "RUNNING")
        for name in ("a", "b"):
            await platform.jobs.StopJob(jobs_pb2.StopJobRequest(job_id=name))
            await until(platform, name, "KILLED")


async def test_two_changes_at_once_lose_neither(database_url: str) -> None:
    database = Database(database_url, "scheduling")
    await database.migrate(MIGRATIONS)
    groups = SqlGroups(database)
    await groups.add(InstanceGroup("g", "g", 4))

    async def more_hosts() -> None:
        await groups.change("g", lambda group: dataclasses.replace(group, hosts=group.hosts + 1))

    await asyncio.gather(*(more_hosts() for _ in range(8)))
    assert (await groups.find("g")).hosts == 9
    await database.close()


async def test_a_group_moves_only_when_nothing_of_it_goes_on(database_url: str) -> None:
    database = Database(database_url, "scheduling")
    await database.migrate(MIGRATIONS)
    groups, jobs = SqlGroups(database), SqlJobs(database)
    await groups.add(InstanceGroup("g", "g", 4, engine="spark", master_url="spark://a:1"))
    job = await jobs.add(Job("j", Spec("n", "exec", "ann", 1, ["true"]), "g", utc_now()))
    with pytest.raises(ServiceError, match="jobs that have not ended"):
        await groups.change("g", lambda group: dataclasses.replace(group, master_url="spark://b:1"))
    assert (await groups.find("g")).master_url == "spark://a:1"
    await groups.change("g", lambda group: dataclasses.replace(group, hosts=2))
    job.kill("stopped", utc_now())
    await jobs.save(job)
    await groups.change("g", lambda group: dataclasses.replace(group, master_url="spark://b:1"))
    assert (await groups.find("g")).master_url == "spark://b:1"
    assert State.KILLED is job.state
    await database.close()


async def test_devices_keep_their_numbers_while_jobs_run_on_them(database_url: str) -> None:
    database = Database(database_url, "scheduling")
    await database.migrate(MIGRATIONS)
    groups, jobs = SqlGroups(database), SqlJobs(database)
    await groups.add(InstanceGroup("g", "g", 4, gpus_per_host=2, engine="spark", master_url="spark://a:1"))
    job = await jobs.add(Job("j", Spec("n", "exec", "ann", 1, ["true"], gpus_per_rank=1), "g", utc_now()))
    other = await jobs.add(Job("k", Spec("n", "exec", "ann", 1, ["true"]), "g", utc_now()))
    # What waits is planned anew.
    await groups.change("g", lambda group: dataclasses.replace(group, hosts=2))
    job.start(1, utc_now(), [[3]])
    await jobs.begin(job)
    other.start(1, utc_now())
    await jobs.begin(other)
    for change in ({"hosts": 3}, {"gpus_per_host": 1}):
        with pytest.raises(ServiceError, match="jobs that run on its GPUs") as caught:
            await groups.change("g", lambda group, change=change: dataclasses.replace(group, **change))
        assert caught.value.code is Code.ABORTED
    await groups.change("g", lambda group: dataclasses.replace(group, slots_per_host=8, policy="fifo"))
    job.kill("stopped", utc_now())
    await jobs.save(job)
    changed = await groups.change("g", lambda group: dataclasses.replace(group, hosts=3, gpus_per_host=1))
    assert (changed.hosts, changed.gpus_per_host, changed.slots_per_host) == (3, 1, 8)
    await database.close()


async def test_what_was_read_before_a_change_is_not_taken_for_what_there_is(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'scheduling.sqlite'}", "scheduling")
    await database.migrate(MIGRATIONS)
    groups = SqlGroups(database)
    await groups.add(InstanceGroup("g", "g", 1))
    has_read, may_go_on = asyncio.Event(), asyncio.Event()
    session_of = database.session

    @asynccontextmanager
    async def slow(**options: bool) -> AsyncIterator[Any]:
        async with session_of(**options) as session:
            yield session
        if options.get("read_only") and not has_read.is_set():
            has_read.set()
            await may_go_on.wait()

    database.session = slow  # type: ignore[method-assign]
    early = asyncio.create_task(groups.all())
    await has_read.wait()
    await groups.change("g", lambda group: dataclasses.replace(group, hosts=5))
    may_go_on.set()
    await early
    assert (await groups.find("g")).hosts == 5
    await database.close()
