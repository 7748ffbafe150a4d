"""Which GPUs the ranks of the newest attempt have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261123T2140"
down_revision = "20261123T2050"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("gpus", sa.JSON, nullable=False, server_default="[]"))
