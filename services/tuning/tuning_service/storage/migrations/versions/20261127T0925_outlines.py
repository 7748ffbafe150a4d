"""What lists show of studies without reading their requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261127T0925"
down_revision = "20261127T0553"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("studies") as studies:
        studies.add_column(sa.Column("algorithm", sa.String(128), nullable=False, server_default=""))
        studies.add_column(sa.Column("objective_metric", sa.Text(), nullable=False, server_default=""))
        studies.add_column(sa.Column("objective", sa.String(16), nullable=False, server_default=""))
        studies.add_column(sa.Column("most_trials", sa.Integer()))
        studies.add_column(sa.Column("warnings", sa.JSON(), nullable=False, server_default="[]"))
