"""Series whose newest value is no number."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261127T0916"
down_revision = "20261127T0551"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("not_finite_series", sa.JSON, nullable=False, server_default="[]"))
