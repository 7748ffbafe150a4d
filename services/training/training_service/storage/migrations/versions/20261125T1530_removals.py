"""Orders to remove what is left of deleted runs."""

import sqlalchemy as sa
from alembic import op

revision = "20261125T1530"
down_revision = "20261125T1020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "removals",
        sa.Column("uid", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=257), nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
    )
