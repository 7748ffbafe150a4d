"""What a job waits for has a column of its own, beside why there is another attempt."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261127T0205"
down_revision = "20261126T2320"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("waits_because", sa.Text, nullable=False, server_default=""))
    jobs = sa.table("jobs", *(sa.column(name) for name in ("state", "attempt", "reason", "waits_because")))
    # Of others it stood in parentheses at the end, where it stays until the next reason is written.
    first = sa.and_(jobs.c.state == "SUBMITTED", jobs.c.attempt == 0)
    op.execute(jobs.update().where(first).values(waits_because=jobs.c.reason, reason=""))
