"""What people should know of a job's newest attempt."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261125T1515"
down_revision = "20261123T2140"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("warning", sa.Text, nullable=False, server_default=""))
