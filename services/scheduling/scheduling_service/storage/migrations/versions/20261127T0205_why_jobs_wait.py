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
    jobs = sa.table("jobs", *(sa.column(name) for name in ("id", "state", "attempt", "reason", "waits_because")))
    first = sa.and_(jobs.c.state == "SUBMITTED", jobs.c.attempt == 0)
    op.execute(jobs.update().where(first).values(waits_because=jobs.c.reason, reason=""))
    # Of others it stood in parentheses at the end. Few: those that run or wait to be started again.
    others = sa.and_(jobs.c.state.in_(("SUBMITTED", "RUNNING")), jobs.c.attempt > 0, jobs.c.reason.like("%)"))
    for job_id, text in op.get_bind().execute(sa.select(jobs.c.id, jobs.c.reason).where(others)).all():
        reason, opened, because = f" {text}".rpartition(" (")
        if opened:
            values = {"reason": reason.strip(), "waits_because": because[:-1]}
            op.execute(jobs.update().where(jobs.c.id == job_id).values(**values))
