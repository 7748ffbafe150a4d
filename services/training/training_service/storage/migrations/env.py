"""Alembic environment of the training service."""

from servicekit.database import env_main
from training_service.storage.tables import Base

env_main(Base.metadata)
