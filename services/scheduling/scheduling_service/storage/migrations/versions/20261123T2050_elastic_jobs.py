"""Elastic jobs: how many ranks the newest attempt has, whether it ends for another number, since when it runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261123T2050"
down_revision = "20261123_1400"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("current_ranks", sa.Integer, nullable=False, server_default="0"),
        sa.Column("resizing", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("attempt_started_at", sa.DateTime(timezone=True)),
    ):
        op.add_column("jobs", column)
    # What runs or ran was rigid.
    op.execute("UPDATE jobs SET current_ranks = slots, attempt_started_at = started_at WHERE attempt > 0")
