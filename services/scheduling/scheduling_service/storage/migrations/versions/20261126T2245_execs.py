"""Exec tasks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from servicekit.database import UtcDateTime

revision = "20261126T2245"
down_revision = "20261126T2242"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "execs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("group_id", sa.String(64), nullable=False),
        sa.Column("arguments", sa.Text, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("is_hidden", sa.Boolean, nullable=False),
        sa.Index("ix_execs_created_at", "created_at", "id"),
        sa.Index("ix_execs_owner_created_at", "owner", "created_at", "id"),
        sa.Index("ix_execs_is_hidden", "is_hidden"),
    )
