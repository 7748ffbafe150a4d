"""One index for lists of applications by whatever has no index of its own; priority as a column."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261126T2310"
down_revision = "20261126T2245"
branch_labels = None
depends_on = None

COLUMNS = (
    *("sequence", "state", "owner", "group_id", "id", "application_id", "driver_id"),
    *("attempt", "current_ranks", "fewest_slots", "priority", "started_at", "ended_at"),
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
    jobs = sa.table("jobs", sa.column("spec", sa.JSON), sa.column("priority"))
    op.execute(jobs.update().values(priority=sa.func.coalesce(jobs.c.spec["priority"].as_integer(), 0)))
    # Lists are sorted by the slots that a job has, not by those that it asked for.
    op.drop_index("ix_jobs_slots", "jobs")
    # PostgreSQL limits the length of an entry.
    texts = ("name", "model") if op.get_bind().dialect.name == "sqlite" else ()
    op.create_index("ix_jobs_lists", "jobs", [*COLUMNS, *texts])
