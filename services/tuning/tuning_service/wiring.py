"""What is made of what."""

from __future__ import annotations

import functools

from dlmesh.tuning.v1 import tuning_pb2_grpc
from servicekit.channels import Channels
from servicekit.database import Database
from servicekit.job_client import JobsClient
from servicekit.reconcile import ReconcileLoop
from servicekit.server import Application
from servicekit.settings import ServiceSettings
from servicekit.times import utc_now

from tuning_service.api.hyper_search_servicer import HyperSearchServicer
from tuning_service.api.model_tuning_servicer import ModelTuningServicer
from tuning_service.clients.models import ModelsClient
from tuning_service.clients.training_trials import TrainingTrials
from tuning_service.clients.trials import ExecTrials
from tuning_service.domain.study import Kind, Study
from tuning_service.settings import TuningSettings
from tuning_service.storage import MIGRATIONS
from tuning_service.storage.algorithms import SqlAlgorithms
from tuning_service.storage.plugin_folders import DiskPluginFolders
from tuning_service.storage.studies import SqlStudies
from tuning_service.storage.study_folders import DiskStudyFolders
from tuning_service.suggestions.built_in import BuiltInSuggestions
from tuning_service.suggestions.importance_process import ImportanceProcesses
from tuning_service.suggestions.pareto_front import FrontProcesses
from tuning_service.suggestions.plugin import PluginSuggestions
from tuning_service.suggestions.plugin_process import PluginLimits, PluginStarter
from tuning_service.suggestions.suggestions import Suggestions
from tuning_service.usecases.algorithms import ManageAlgorithms
from tuning_service.usecases.follow_trials import FollowTrials
from tuning_service.usecases.ports import Runner
from tuning_service.usecases.remove_orphans import RemoveOrphans
from tuning_service.usecases.remove_studies import RemoveStudies
from tuning_service.usecases.run_studies import RunStudies
from tuning_service.usecases.start_hyper_search import StartHyperSearch
from tuning_service.usecases.studies import ChangeStudies, FindStudies, Importance, ParetoFront
from tuning_service.usecases.tunings import StartTuning, UseResult

# The end of a trial is waited for by a call of its own; this is for when that call fails.
SOON_SECONDS = 0.25
ORPHANS_LATER_SECONDS = 30.0
# How much longer than one search all those together may take that a new process of an algorithm repeats.
CATCH_UP_SHARE = 6.0


def build(settings: ServiceSettings, *, limits: TuningSettings | None = None) -> Application:
    """The service on `settings`."""
    limits = limits or TuningSettings.from_environment()
    database = Database(settings.database_url, "tuning")
    channels = Channels(settings)
    jobs = JobsClient(channels, "tuning")
    programs, trainings, models = ExecTrials(channels), TrainingTrials(channels), ModelsClient(channels)
    runners: dict[Kind, Runner] = {Kind.HYPER_SEARCH: programs, Kind.MODEL_TUNING: trainings}
    studies, algorithms = SqlStudies(database), SqlAlgorithms(database)
    folders = DiskStudyFolders(settings.home)
    plugins = DiskPluginFolders(settings.home, settings.data_roots)

    async def execution_user(study: Study) -> str:
        return (await jobs.instance_group("instanceGroup", study.group_id)).execution_user

    suggestions = Suggestions(
        algorithms,
        BuiltInSuggestions(),
        PluginSuggestions(
            PluginStarter(
                settings.home,
                plugins.folder_of,
                plugins.python_of,
                execution_user,
                PluginLimits(
                    ask_seconds=limits.plugin_seconds, catch_up_seconds=CATCH_UP_SHARE * limits.plugin_seconds
                ),
            )
        ),
        ImportanceProcesses(),
    )
    follow = FollowTrials(studies, runners, jobs, utc_now)
    run = RunStudies(studies, algorithms, suggestions, follow, jobs, utc_now)
    loop = ReconcileLoop("studies", run.step, soon_seconds=SOON_SECONDS)
    removals = ReconcileLoop("removals", RemoveStudies(studies, runners, folders).step, later_seconds=5.0)

    orphans = RemoveOrphans(
        studies,
        models,
        grace_seconds=limits.orphan_grace_seconds,
        now=utc_now,
        wake=loop.wake,
        wake_removals=removals.wake,
    )

    def changes(kind: Kind) -> ChangeStudies:
        return ChangeStudies(
            kind,
            studies,
            algorithms,
            utc_now,
            wake=loop.wake,
            wake_removals=removals.wake,
        )

    front = ParetoFront(studies, algorithms, FrontProcesses())
    importance = Importance(studies, algorithms, suggestions)

    hyper_searches = HyperSearchServicer(
        StartHyperSearch(studies, algorithms, programs, folders, utc_now, loop.wake),
        FindStudies(Kind.HYPER_SEARCH, studies),
        changes(Kind.HYPER_SEARCH),
        ManageAlgorithms(algorithms, studies, plugins, utc_now),
        front,
        importance,
        utc_now,
        folders.spool,
        max_upload_bytes=limits.max_upload_bytes,
    )
    model_tunings = ModelTuningServicer(
        StartTuning(studies, algorithms, trainings, utc_now, loop.wake),
        FindStudies(Kind.MODEL_TUNING, studies),
        changes(Kind.MODEL_TUNING),
        UseResult(studies, trainings, models),
        front,
        importance,
        models,
        utc_now,
    )
    package = "dlmesh.tuning.v1"
    return Application(
        name="tuning",
        servicers=[
            (
                tuning_pb2_grpc.add_HyperSearchServiceServicer_to_server,
                hyper_searches,
                f"{package}.HyperSearchService",
            ),
            (
                tuning_pb2_grpc.add_ModelTuningServiceServicer_to_server,
                model_tunings,
                f"{package}.ModelTuningService",
            ),
        ],
        loops=[loop, removals, ReconcileLoop("orphaned tunings", orphans.step, later_seconds=ORPHANS_LATER_SECONDS)],
        databases=[database],
        channels=[channels],
        startup=[functools.partial(database.migrate, MIGRATIONS)],
        shutdown=[run.close, suggestions.close],
        settings={"": limits},
    )
