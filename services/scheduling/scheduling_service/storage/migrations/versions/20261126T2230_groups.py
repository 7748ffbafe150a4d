"""Instance groups and user shares, the counter of submissions, what engines call a job, and indexes for lists."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261126T2230"
down_revision = "20261125T1515"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "instance_groups",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False, unique=True),
        sa.Column("engine", sa.String(32), nullable=False),
        sa.Column("master_url", sa.Text, nullable=False),
        sa.Column("history_server_url", sa.Text, nullable=False),
        sa.Column("hosts", sa.Integer, nullable=False),
        sa.Column("slots_per_host", sa.Integer, nullable=False),
        sa.Column("gpus_per_host", sa.Integer, nullable=False),
        sa.Column("policy", sa.String(32), nullable=False),
        sa.Column("execution_user", sa.String(128), nullable=False),
        sa.Column("max_slots_per_user", sa.Integer, nullable=False),
        sa.Column("is_started", sa.Boolean, nullable=False),
        sa.Column("engine_options", sa.JSON, nullable=False),
        # What the queue says to those that it did not look at one by one.
        sa.Column("runs_next", sa.Text, nullable=False, server_default=""),
    )
    op.create_table(
        "user_shares",
        sa.Column("group_id", sa.String(64), primary_key=True),
        sa.Column("user", sa.String(128), primary_key=True),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("max_slots", sa.Integer, nullable=False),
    )
    op.create_table(
        "counters",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO counters (id, value) SELECT 'jobs', COALESCE(MAX(sequence), 0) FROM jobs")
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("application_id", sa.String(128), nullable=False, server_default=""))
        jobs.add_column(sa.Column("driver_id", sa.String(128), nullable=False, server_default=""))
        jobs.add_column(sa.Column("suspending", sa.Boolean, nullable=False, server_default=sa.false()))
        jobs.add_column(sa.Column("is_backfill", sa.Boolean, nullable=False, server_default=sa.false()))
        jobs.add_column(sa.Column("waits_for", sa.JSON, nullable=False, server_default="[]"))
    stopping = sa.text("stop_requested AND ended_at IS NULL")
    op.create_index("ix_jobs_stopping", "jobs", ["sequence"], sqlite_where=stopping, postgresql_where=stopping)
    for column in ("name", "ended_at", "slots", "model", "dataset", "application_id", "driver_id"):
        op.create_index(f"ix_jobs_{column}", "jobs", [column, "sequence"])
