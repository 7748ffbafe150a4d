"""The parts of exec tasks, put together for `wiring`."""

from __future__ import annotations

from dataclasses import dataclass

from servicekit.archives import ArchiveLimits
from servicekit.database import Database
from servicekit.reconcile import ReconcileLoop
from servicekit.settings import ServiceSettings
from servicekit.times import utc_now

from scheduling_service.api.exec_servicer import ExecServicer
from scheduling_service.api.trial_servicer import TrialServicer
from scheduling_service.exec_frameworks.installed import InstalledFrameworks
from scheduling_service.exec_limits import ExecLimits
from scheduling_service.storage.exec_folders import DiskExecFolders
from scheduling_service.storage.exec_logs import DiskExecLogs
from scheduling_service.storage.exec_results import DiskExecResults
from scheduling_service.storage.execs import SqlExecs
from scheduling_service.storage.stored_uploads import DiskStoredUploads
from scheduling_service.storage.trial_files import DiskTrialFiles
from scheduling_service.usecases.delete_exec import DeleteAllExecs, DeleteExec
from scheduling_service.usecases.delete_job import DeleteJob
from scheduling_service.usecases.find_exec import FindExec, ListExecs
from scheduling_service.usecases.manage_exec_frameworks import ManageExecFrameworks
from scheduling_service.usecases.ports import Groups, Jobs, RunDirectories
from scheduling_service.usecases.prepare_exec import ExecSettings, PrepareExec
from scheduling_service.usecases.read_exec import ReadExecLog, ReadExecResult
from scheduling_service.usecases.start_exec import InFlight, StartExec
from scheduling_service.usecases.start_trial import CheckTrial, StartTrial
from scheduling_service.usecases.stop_exec import StopExec
from scheduling_service.usecases.stop_job import StopJob
from scheduling_service.usecases.submit_job import SubmitJob
from scheduling_service.usecases.tend_execs import TendExecs
from scheduling_service.usecases.tend_trials import DeleteTrials, ReadTrialResults


@dataclass(frozen=True)
class ExecParts:
    """What `build_execs` made."""

    servicer: ExecServicer
    trial_servicer: TrialServicer
    loop: ReconcileLoop


def build_execs(
    settings: ServiceSettings,
    database: Database,
    jobs: Jobs,
    groups: Groups,
    files: RunDirectories,
    submit: SubmitJob,
    stop: StopJob,
    delete: DeleteJob,
    limits: ExecLimits,
) -> ExecParts:
    """ExecService, TrialService and their loop."""
    root = settings.home / "execs"
    execs = SqlExecs(database)
    folders = DiskExecFolders(
        root, ArchiveLimits(size_bytes=limits.max_upload_bytes), max_results_bytes=limits.max_disk_bytes
    )
    frameworks = InstalledFrameworks(settings.home / "exec-frameworks")
    in_flight = InFlight()
    results = DiskExecResults(root, settings.home / "exec-results")
    tend = TendExecs(execs, folders, results, submit, stop, delete, in_flight)
    loop = ReconcileLoop("execs", tend.step)

    def wake_after_trouble() -> None:
        tend.look_again()
        loop.wake()

    find = FindExec(execs)
    of_every_task = ExecSettings(settings.data_roots, limits.stop_grace_seconds, limits.max_disk_bytes)
    prepare = PrepareExec(folders, frameworks, groups, jobs, of_every_task, utc_now)
    start = StartExec(execs, folders, prepare, submit, in_flight, wake_after_trouble)
    servicer = ExecServicer(
        start,
        find,
        ListExecs(execs),
        StopExec(execs, find, submit, stop),
        DeleteExec(execs, find, loop.wake),
        DeleteAllExecs(execs, loop.wake),
        ReadExecLog(find, jobs, DiskExecLogs(files, root)),
        ReadExecResult(find, jobs, results),
        ManageExecFrameworks(frameworks, settings.data_roots),
        max_upload_bytes=limits.max_upload_bytes,
    )
    trial_servicer = TrialServicer(
        CheckTrial(folders, prepare, submit, in_flight),
        StartTrial(execs, folders, start, submit, in_flight),
        ReadTrialResults(execs, DiskTrialFiles(root)),
        DeleteTrials(execs, utc_now, loop.wake),
        DiskStoredUploads(settings.home, limits.max_upload_bytes),
    )
    return ExecParts(servicer, trial_servicer, loop)
