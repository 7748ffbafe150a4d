"""What is made of what."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from dlmesh.tuning.v1 import tuning_pb2_grpc
from servicekit.channels import Channels
from servicekit.database import Database
from servicekit.job_client import JobsClient
from servicekit.reconcile import ReconcileLoop
from servicekit.server import Application
from servicekit.settings import ServiceSettings
from servicekit.times import utc_now

from tuning_service.api.hyper_search_servicer import HyperSearchServicer
from tuning_service.api.servicers import ModelTuningServicer
from tuning_service.clients.trials import ExecTrials
from tuning_service.domain.study import Kind
from tuning_service.settings import TuningSettings
from tuning_service.storage import MIGRATIONS
from tuning_service.storage.algorithms import SqlAlgorithms
from tuning_service.storage.plugin_folders import DiskPluginFolders
from tuning_service.storage.studies import SqlStudies
from tuning_service.storage.study_folders import DiskStudyFolders
from tuning_service.suggestions.built_in import BuiltInSuggestions
from tuning_service.suggestions.plugin import PluginLimits, PluginSuggestions
from tuning_service.suggestions.suggestions import Suggestions
from tuning_service.usecases.algorithms import ManageAlgorithms
from tuning_service.usecases.follow_trials import FollowTrials
from tuning_service.usecases.ports import Jobs, Runner
from tuning_service.usecases.remove_studies import RemoveStudies
from tuning_service.usecases.run_studies import RunStudies
from tuning_service.usecases.start_hyper_search import StartHyperSearch
from tuning_service.usecases.studies import ChangeStudies, FindStudies

# The end of a trial is waited for by a call of its own; this is for when that call fails.
SOON_SECONDS = 0.25


def build(
    settings: ServiceSettings,
    *,
    limits: TuningSettings | None = None,
    runners: Mapping[Kind, Runner] | None = None,
    jobs: Jobs | None = None,
) -> Application:
    """The service on `settings`; a peer that is given is used instead of the real one."""
    limits = limits or TuningSettings.from_environment()
    database = Database(settings.database_url, "tuning")
    channels = Channels(settings)
    jobs = jobs or JobsClient(channels, "tuning")
    runners = runners or {Kind.HYPER_SEARCH: ExecTrials(channels)}
    studies, algorithms = SqlStudies(database), SqlAlgorithms(database)
    folders = DiskStudyFolders(settings.home)
    plugins = DiskPluginFolders(settings.home, settings.data_roots)
    suggestions = Suggestions(
        algorithms,
        BuiltInSuggestions(),
        PluginSuggestions(
            settings.home / "tuning",
            plugins.folder_of,
            plugins.python_of,
            PluginLimits(ask_seconds=limits.plugin_seconds),
        ),
    )
    run = RunStudies(
        studies,
        algorithms,
        suggestions,
        FollowTrials(studies, runners, jobs, utc_now),
        jobs,
        utc_now,
        lambda: loop.wake(),
    )
    loop = ReconcileLoop("studies", run.step, soon_seconds=SOON_SECONDS)
    removals = ReconcileLoop("removals", RemoveStudies(studies, runners, folders).step, later_seconds=5.0)
    hyper_searches = HyperSearchServicer(
        StartHyperSearch(studies, algorithms, runners[Kind.HYPER_SEARCH], folders, utc_now, loop.wake),
        FindStudies(Kind.HYPER_SEARCH, studies),
        ChangeStudies(Kind.HYPER_SEARCH, studies, algorithms, utc_now, wake=loop.wake, wake_removals=removals.wake),
        ManageAlgorithms(algorithms, studies, plugins, utc_now),
        utc_now,
        folders.spool,
        max_upload_bytes=limits.max_upload_bytes,
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
                ModelTuningServicer(),
                f"{package}.ModelTuningService",
            ),
        ],
        loops=[loop, removals],
        databases=[database],
        channels=[channels],
        startup=[functools.partial(database.migrate, MIGRATIONS)],
        shutdown=[run.close, suggestions.close],
        settings={"": limits},
    )
