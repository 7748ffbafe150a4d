"""Trials: trainings of studies, which lists of trainings leave out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from servicekit.database import UtcDateTime

revision = "20261127T0623"
down_revision = "20261127T0250"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("study", sa.String(128), nullable=False, server_default=""),
        sa.Column("user_defined", sa.JSON, nullable=False, server_default="{}"),
        sa.Column("trial_number", sa.Integer, nullable=False, server_default="0"),
        sa.Column("gpus_per_worker", sa.Integer, nullable=False, server_default="0"),
        sa.Column("is_hidden", sa.Boolean, nullable=False, server_default=sa.false()),
    ):
        op.add_column("trainings", column)
    op.create_index("ix_trainings_lists", "trainings", ["model_uid", "study"])
    op.create_index("ix_trainings_is_hidden", "trainings", ["is_hidden"])
    op.create_table(
        "deleted_trials",
        sa.Column("uid", sa.String(32), primary_key=True),
        sa.Column("deleted_at", UtcDateTime, nullable=False, index=True),
    )
