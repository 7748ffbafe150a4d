"""Priority and most seconds of trainings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261127T0250"
down_revision = "20261126T2030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("priority", "max_seconds"):
        op.add_column("trainings", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
