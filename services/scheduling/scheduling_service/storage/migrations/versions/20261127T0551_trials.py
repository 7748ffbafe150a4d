"""Trials: exec tasks of studies, which lists of tasks leave out; the study of a job, for lists of applications."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from servicekit.database import UtcDateTime

revision = "20261127T0551"
down_revision = "20261127T0205"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("study", sa.Text, nullable=False, server_default=""))
    op.create_index("ix_jobs_study", "jobs", ["study", "sequence"])
    op.add_column("execs", sa.Column("is_trial", sa.Boolean, nullable=False, server_default=sa.false()))
    # Behind one study there may be tens of thousands that a list would look at for nothing.
    op.drop_index("ix_execs_created_at", "execs")
    op.drop_index("ix_execs_owner_created_at", "execs")
    op.create_index("ix_execs_lists", "execs", ["is_trial", "created_at", "id"])
    op.create_index("ix_execs_lists_of_owner", "execs", ["owner", "is_trial", "created_at", "id"])
    op.create_table(
        "deleted_trials",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("deleted_at", UtcDateTime, nullable=False),
        sa.Index("ix_deleted_trials_deleted_at", "deleted_at"),
    )
