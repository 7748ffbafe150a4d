"""Alembic's entry; the connection comes from `Database.migrate`."""

from models_service.storage.tables import METADATA
from servicekit.database import env_main

env_main(METADATA)
