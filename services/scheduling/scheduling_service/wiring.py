"""The only place that knows every part of the service."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dlmesh.scheduling.v1 import jobs_pb2_grpc, scheduling_pb2_grpc, trials_pb2_grpc
from servicekit.database import Database
from servicekit.reconcile import ReconcileLoop
from servicekit.server import Application
from servicekit.settings import ServiceSettings, SettingError
from servicekit.times import utc_now

from scheduling_service.api.instance_group_servicer import InstanceGroupServicer
from scheduling_service.api.job_servicer import JobServicer
from scheduling_service.api.scheduler_servicer import SchedulerServicer
from scheduling_service.engines.base import Engine
from scheduling_service.engines.registry import ENGINES, make_engine
from scheduling_service.engines.runner import EngineRunner, JobFiles
from scheduling_service.exec_limits import ExecLimits
from scheduling_service.storage.groups import SqlGroups
from scheduling_service.storage.jobs import SqlJobs
from scheduling_service.usecases.await_ends import AwaitEnds, JobEnds
from scheduling_service.usecases.delete_job import DeleteJob
from scheduling_service.usecases.describe_attempts import DescribeAttempts
from scheduling_service.usecases.find_application import FindApplication
from scheduling_service.usecases.instance_groups import InstanceGroups
from scheduling_service.usecases.list_applications import ListApplications
from scheduling_service.usecases.run_queue import GROW_AFTER_SECONDS, RunQueue
from scheduling_service.usecases.stop_job import StopJob
from scheduling_service.usecases.submit_job import SubmitJob
from scheduling_service.usecases.waiting_reasons import WaitingReasons
from scheduling_service.wiring_execs import build_execs

MIGRATIONS = Path(__file__).parent / "storage" / "migrations"


@dataclass(frozen=True)
class LocalSettings:
    """What this service reads beyond the common settings."""

    slots: int
    gpus: int
    warm_pool: bool
    grow_after_seconds: float = GROW_AFTER_SECONDS

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> LocalSettings:
        """DLMESH_SLOTS (ranks that run at once), DLMESH_WARM_POOL (0 starts every rank cold) and
        DLMESH_GROW_AFTER_SECONDS (how long an elastic job runs beside free slots before it takes them)."""
        text = environ.get("DLMESH_SLOTS") or str(max(2, os.cpu_count() or 1))
        if not text.isdigit() or int(text) < 1:
            raise SettingError(f"DLMESH_SLOTS: {text!r} is not valid; allowed: a whole number from 1")
        seconds = environ.get("DLMESH_GROW_AFTER_SECONDS") or str(GROW_AFTER_SECONDS)
        if not seconds.replace(".", "", 1).isdecimal():
            raise SettingError(f"DLMESH_GROW_AFTER_SECONDS: {seconds!r} is not valid; allowed: a number from 0")
        gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
        return cls(
            slots=int(text),
            gpus=gpus,
            warm_pool=environ.get("DLMESH_WARM_POOL", "1") != "0",
            grow_after_seconds=float(seconds),
        )


def build(
    settings: ServiceSettings, *, local: LocalSettings | None = None, engines: Mapping[str, Engine] | None = None
) -> Application:
    """The service, wired but not started."""
    local = local or LocalSettings.from_environment()
    if engines is None:
        engines = {name: make_engine(name, home=settings.home, warm_pool=local.warm_pool) for name in ENGINES}
    database = Database(settings.database_url, "scheduling")
    jobs = SqlJobs(database)
    groups = SqlGroups(database)
    files = JobFiles(settings.home / "jobs")
    runner = EngineRunner(engines, files, settings.secret, settings.peers, os.environ, settings.data_roots)
    # The engine is this machine's, so whoever runs on it takes the lease over from a process that was killed.
    holder = f"{socket.gethostname()}:{settings.home}"
    ends = JobEnds()
    queue = RunQueue(
        jobs, groups, runner, files, utc_now, holder, grow_after_seconds=local.grow_after_seconds, tell_end=ends.tell
    )
    # Looking at a gang costs a few stats of files, and a short job should not seem long.
    loop = ReconcileLoop("queue", queue.step, soon_seconds=0.05)
    for engine in engines.values():
        engine.on_news(loop.wake)

    reasons = WaitingReasons(groups)
    describe = DescribeAttempts(runner, files)
    submit, stop = SubmitJob(jobs, groups, utc_now, loop.wake), StopJob(jobs, loop.wake)
    delete = DeleteJob(jobs, files, ends.tell)
    exec_limits = ExecLimits.from_environment()
    execs = build_execs(settings, database, jobs, groups, files, submit, stop, delete, exec_limits)
    job_servicer = JobServicer(
        submit,
        stop,
        delete,
        AwaitEnds(jobs, ends),
        jobs,
        groups,
        files,
        reasons,
    )
    return Application(
        name="scheduling",
        servicers=[
            (jobs_pb2_grpc.add_JobServiceServicer_to_server, job_servicer, "dlmesh.scheduling.v1.JobService"),
            (
                scheduling_pb2_grpc.add_SchedulerServiceServicer_to_server,
                SchedulerServicer(
                    ListApplications(jobs, groups, reasons, describe),
                    FindApplication(jobs, groups, describe),
                    groups,
                    runner,
                    files,
                ),
                "dlmesh.scheduling.v1.SchedulerService",
            ),
            (
                scheduling_pb2_grpc.add_InstanceGroupServiceServicer_to_server,
                InstanceGroupServicer(InstanceGroups(groups, runner, loop.wake)),
                "dlmesh.scheduling.v1.InstanceGroupService",
            ),
            (
                scheduling_pb2_grpc.add_ExecServiceServicer_to_server,
                execs.servicer,
                "dlmesh.scheduling.v1.ExecService",
            ),
            (
                trials_pb2_grpc.add_TrialServiceServicer_to_server,
                execs.trial_servicer,
                "dlmesh.scheduling.v1.TrialService",
            ),
        ],
        loops=[loop, execs.loop],
        databases=[database],
        startup=[
            lambda: database.migrate(MIGRATIONS),
            lambda: groups.ensure_local(local.slots, local.gpus),
            *(engine.open for engine in engines.values()),
        ],
        let_go=[ends.close],
        shutdown=[engine.close for engine in engines.values()],
        settings={"": local, "exec": exec_limits},
    )
