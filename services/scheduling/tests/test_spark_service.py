"""The scheduling service with an instance group on a real Spark: jobs through its API, as clients see them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import scheduling_room
from dlmesh.scheduling.v1 import jobs_pb2, scheduling_pb2
from dlmesh_platform.spark_cluster import SparkCluster
from scheduling_room import service, spec, submit, until
from testkit.services import ADMIN, ALICE, acting_as, collect

# Counts its steps on from what it saved, and says with how many ranks it goes on; asked to end it saves and says so.
ELASTIC = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
rank, world = int(os.environ["RANK"]), os.environ["WORLD_SIZE"]
if rank == 0:
    open("worlds", "a").write(world + "\\n")
while not os.path.exists("enough"):
    time.sleep(0.05)
print("done with", world)
"""
FAILS_ONCE = """
import os, sys
if os.environ["DLMESH_JOB_ATTEMPT"] == "1":
    sys.exit("the first time fails")
print("the second time works")
"""


@pytest.mark.slow
async def test_jobs_of_a_group_on_spark_shrink_grow_fail_and_finish_as_on_this_machine(
    tmp_path: Path, spark_cluster: SparkCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling_room, "DEADLINE_SECONDS", 180)
    # Where programs may write: the rest of the home is hidden from them.
    here = tmp_path / "data"
    async with service(tmp_path) as platform:
        settings = scheduling_pb2.InstanceGroupSettings(
            name="cluster",
            engine="spark",
            master_url=spark_cluster.master_url,
            history_server_url=spark_cluster.history_url,
            hosts=2,
            slots_per_host=1,
            engine_options=spark_cluster.engine_options,
        )
        with acting_as(ADMIN):
            await platform.groups.CreateInstanceGroup(scheduling_pb2.CreateInstanceGroupRequest(group=settings))

        async def worlds(*wanted: str) -> None:
            path = here / "worlds"
            async with asyncio.timeout(180):
                while not path.exists() or path.read_text().split() != list(wanted):
                    await asyncio.sleep(0.05)

        changes = {"instance_group": "cluster", "max_restarts": 1, "working_directory": str(here)}
        await submit(platform, "elastic", spec(tmp_path, ELASTIC, ranks=2, min_ranks=1, **changes))
        await worlds("2")
        await submit(platform, "other", spec(tmp_path, FAILS_ONCE, **changes))
        other = await until(platform, "other", "FINISHED", "ERROR")
        assert (other.state, other.attempt) == ("FINISHED", 2), other.reason
        assert (here / "worlds").read_text().split()[:2] == ["2", "1"]
        await worlds("2", "1", "2")
        with acting_as(ALICE):
            found = scheduling_pb2.ListApplicationsRequest(state="RUNNING", sig_id="cluster")
            (application,) = await collect(platform.scheduler.ListApplications(found))
        assert application.id.startswith("app-")
        assert application.driver.id.startswith("driver-")
        assert (application.master_url, application.slots) == (spark_cluster.master_url, 2)
        (here / "enough").touch()
        elastic = await until(platform, "elastic", "FINISHED", "ERROR")
        assert (elastic.state, [rank.exit_code for rank in elastic.ranks]) == ("FINISHED", [0, 0])
        log = platform.jobs.ReadJobLog(jobs_pb2.ReadJobLogRequest(job_id="elastic", stream="stdout", rank=1))
        assert b"".join([piece.data for piece in await collect(log)]) == b"done with 2\n"

        # As clients read them, after the application ended.
        with acting_as(ALICE):
            driver_id = application.driver.id
            asked = scheduling_pb2.DownloadExecutorLogRequest(driver_id=driver_id, executor_id="0", stream="stdout")
            pieces = await collect(platform.scheduler.DownloadExecutorLog(asked))
            assert b"".join(piece.data for piece in pieces) == b"done with 2\n"
            of_driver = scheduling_pb2.DownloadDriverLogRequest(driver_id=driver_id, stream="stderr")
            pieces = await collect(platform.scheduler.DownloadDriverLog(of_driver))
            assert b"NativeCodeLoader" in b"".join(piece.data for piece in pieces)
