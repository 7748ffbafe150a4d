"""SQLite keeps points in the order of their key; PostgreSQL stays as it is."""

import sqlalchemy as sa
from alembic import op

revision = "20261125T1020"
down_revision = "20261124T0230"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        return
    op.rename_table("metrics", "metrics_by_row")
    op.create_table(
        "metrics",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("series", sa.String(length=128), nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "series", "step", "attempt"),
        sqlite_with_rowid=False,
    )
    columns = "job_id, series, step, attempt, value, time"
    op.execute(f"INSERT INTO metrics ({columns}) SELECT {columns} FROM metrics_by_row")
    op.drop_table("metrics_by_row")
