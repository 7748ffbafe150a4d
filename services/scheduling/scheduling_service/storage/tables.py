"""Tables of the scheduling service."""

from __future__ import annotations

import sqlalchemy as sa
from servicekit.database import UtcDateTime

METADATA = sa.MetaData()

# States of jobs that have not ended.
ACTIVE = ("SUBMITTED", "RUNNING")

_OF_LISTS = (
    *("sequence", "state", "owner", "group_id", "id", "application_id", "driver_id"),
    *("attempt", "current_ranks", "fewest_slots", "priority", "started_at", "ended_at"),
)

JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    # Grows with every submission: the order of the queue, also where two came in one microsecond.
    sa.Column("sequence", sa.Integer, nullable=False, unique=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("group_id", sa.String(64), nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    # Of the spec, for lists that are filtered and sorted by them.
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("framework", sa.Text, nullable=False, server_default=""),
    sa.Column("slots", sa.Integer, nullable=False),
    sa.Column("fewest_slots", sa.Integer, nullable=False, server_default="0"),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column("study", sa.Text, nullable=False, server_default=""),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("waits_because", sa.Text, nullable=False, server_default=""),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("program_failures", sa.Integer, nullable=False),
    sa.Column("platform_losses", sa.Integer, nullable=False),
    sa.Column("stop_requested", sa.Boolean, nullable=False),
    sa.Column("not_before", UtcDateTime),
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("result_json", sa.Text, nullable=False),
    sa.Column("warning", sa.Text, nullable=False),
    sa.Column("log_tail", sa.Text, nullable=False),
    sa.Column("ranks", sa.JSON, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("current_ranks", sa.Integer, nullable=False),
    sa.Column("resizing", sa.Boolean, nullable=False),
    sa.Column("attempt_started_at", UtcDateTime),
    sa.Column("gpus", sa.JSON, nullable=False),
    sa.Column("application_id", sa.String(128), nullable=False, server_default=""),
    sa.Column("driver_id", sa.String(128), nullable=False, server_default=""),
    sa.Column("suspending", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("is_backfill", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("waits_for", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("not_finite_series", sa.JSON, nullable=False, server_default="[]"),
    # The queue asks for these with every step.
    sa.Index(
        "ix_jobs_stopping",
        "sequence",
        sqlite_where=sa.text("stop_requested AND ended_at IS NULL"),
        postgresql_where=sa.text("stop_requested AND ended_at IS NULL"),
    ),
    *(
        sa.Index(f"ix_jobs_{column}", column, "sequence")
        for column in (
            "name",
            "ended_at",
            "model",
            "dataset",
            "application_id",
            "driver_id",
            "group_id",
            "framework",
            "study",
        )
    ),
    sa.Index("ix_jobs_state_sequence", "state", "sequence"),
    sa.Index("ix_jobs_owner_sequence", "owner", "sequence"),
    # Lists by what has no index of its own sort these entries, not rows, which are long. Texts of any length are for
    # searches; PostgreSQL limits an entry, and reads whole rows faster.
    sa.Index("ix_jobs_lists", *_OF_LISTS, "name", "model").ddl_if(dialect="sqlite"),
    sa.Index("ix_jobs_lists", *_OF_LISTS).ddl_if(dialect="postgresql"),
)

# Counts submissions, also those that were deleted: a number is never given twice.
COUNTERS = sa.Table(
    "counters",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

GROUPS = sa.Table(
    "instance_groups",
    METADATA,
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

USER_SHARES = sa.Table(
    "user_shares",
    METADATA,
    sa.Column("group_id", sa.String(64), primary_key=True),
    sa.Column("user", sa.String(128), primary_key=True),
    sa.Column("weight", sa.Float, nullable=False),
    sa.Column("max_slots", sa.Integer, nullable=False),
)

# One row: which machine's loop runs the queue.
LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("lease_holder", sa.Text),
    sa.Column("lease_expires_at", UtcDateTime),
)
