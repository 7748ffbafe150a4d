"""The database of this service; tables come with the first tuning task."""

from pathlib import Path

import sqlalchemy as sa

MIGRATIONS = Path(__file__).parent / "migrations"
METADATA = sa.MetaData()
