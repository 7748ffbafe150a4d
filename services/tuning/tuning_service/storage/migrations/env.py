"""Alembic's entry; the connection comes from `Database.migrate`."""

from servicekit.database import env_main
from tuning_service.storage.tables import Base

env_main(Base.metadata)
