"""Run by alembic through `servicekit.database.Database.migrate`."""

from gateway_service.storage.tables import Base
from servicekit.database import env_main

env_main(Base.metadata)
