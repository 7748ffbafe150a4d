"""Alembic environment of the inference service."""

from inference_service.storage.tables import Base
from servicekit.database import env_main

env_main(Base.metadata)
