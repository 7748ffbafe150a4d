"""An index of hidden exec tasks alone: one of all made lists sort all tasks for each page."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261126T2320"
down_revision = "20261126T2310"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_execs_is_hidden", "execs")
    op.create_index(
        "ix_execs_hidden",
        "execs",
        ["created_at"],
        sqlite_where=sa.text("is_hidden IS 1"),
        postgresql_where=sa.text("is_hidden IS true"),
    )
