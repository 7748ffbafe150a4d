"""What lists of applications are sorted by: framework and demanded slots as columns; an index of each group's jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261126T2242"
down_revision = "20261126T2230"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("framework", sa.Text, nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("fewest_slots", sa.Integer, nullable=False, server_default="0"))
    jobs = sa.table(
        "jobs",
        sa.column("spec", sa.JSON),
        *(sa.column(name) for name in ("framework", "fewest_slots", "slots")),
    )
    fewest = jobs.c.spec["min_ranks"].as_integer()
    op.execute(
        jobs.update().values(
            framework=sa.func.coalesce(jobs.c.spec["framework"].as_string(), ""),
            fewest_slots=sa.func.coalesce(sa.func.nullif(fewest, 0), jobs.c.slots),
        )
    )
    for column in ("group_id", "framework"):
        op.create_index(f"ix_jobs_{column}", "jobs", [column, "sequence"])
