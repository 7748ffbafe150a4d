"""What is made of what."""

from __future__ import annotations

import functools

from dlmesh.tuning.v1 import tuning_pb2_grpc
from servicekit.database import Database
from servicekit.server import Application
from servicekit.settings import ServiceSettings

from tuning_service.api.servicers import HyperSearchServicer, ModelTuningServicer
from tuning_service.storage import MIGRATIONS


def build(settings: ServiceSettings) -> Application:
    """The service on `settings`."""
    database = Database(settings.database_url, "tuning")
    package = "dlmesh.tuning.v1"
    return Application(
        name="tuning",
        servicers=[
            (
                tuning_pb2_grpc.add_HyperSearchServiceServicer_to_server,
                HyperSearchServicer(),
                f"{package}.HyperSearchService",
            ),
            (
                tuning_pb2_grpc.add_ModelTuningServiceServicer_to_server,
                ModelTuningServicer(),
                f"{package}.ModelTuningService",
            ),
        ],
        databases=[database],
        startup=[functools.partial(database.migrate, MIGRATIONS)],
    )
