"""Since when the model of a run is known to be gone."""

import sqlalchemy as sa
from alembic import op
from servicekit.database import UtcDateTime

revision = "20261125T1600"
down_revision = "20261125T1545"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("trainings", "validations"):
        op.add_column(table, sa.Column("orphaned_at", UtcDateTime(), nullable=True))
