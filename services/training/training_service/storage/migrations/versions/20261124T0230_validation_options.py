"""Options of a validation: the format of its data, the inference program it was given, how long it may be silent."""

import sqlalchemy as sa
from alembic import op

revision = "20261124T0230"
down_revision = "20261123T2045"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("dataset_type", sa.String(length=32), nullable=False, server_default=""),
        sa.Column("inference_file", sa.Text(), nullable=False, server_default=""),
        sa.Column("max_silent_seconds", sa.Integer(), nullable=False, server_default="0"),
    ):
        op.add_column("validations", column)
