"""Alembic's entry; the connection comes from `Database.migrate`."""

from datasets_service.storage.tables import Base
from servicekit.database import env_main

env_main(Base.metadata)
