"""Between which steps each attempt of a job has points."""

import sqlalchemy as sa
from alembic import op

revision = "20261125T1545"
down_revision = "20261125T1530"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "metric_attempts",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "attempt"),
    )
    op.execute(
        "INSERT INTO metric_attempts (job_id, attempt, first_step, last_step) "
        "SELECT job_id, attempt, MIN(step), MAX(step) FROM metrics GROUP BY job_id, attempt"
    )
