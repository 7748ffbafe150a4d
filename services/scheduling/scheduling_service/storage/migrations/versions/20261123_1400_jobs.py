"""Jobs and the lease of the queue."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261123_1400"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("sequence", sa.Integer, nullable=False, unique=True),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("group_id", sa.String(64), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("program_failures", sa.Integer, nullable=False),
        sa.Column("platform_losses", sa.Integer, nullable=False),
        sa.Column("stop_requested", sa.Boolean, nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True)),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("result_json", sa.Text, nullable=False),
        sa.Column("log_tail", sa.Text, nullable=False),
        sa.Column("ranks", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
    )
    op.create_index("ix_jobs_state_sequence", "jobs", ["state", "sequence"])
    op.create_index("ix_jobs_owner_sequence", "jobs", ["owner", "sequence"])
    op.create_table(
        "leases",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("lease_holder", sa.Text),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
    )
    op.execute("INSERT INTO leases (id) VALUES ('queue')")
