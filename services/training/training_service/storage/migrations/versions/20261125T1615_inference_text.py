"""A validation keeps the text of the inference program that it was given, not where it lay."""

import sqlalchemy as sa
from alembic import op

revision = "20261125T1615"
down_revision = "20261125T1600"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("validations", sa.Column("inference_text", sa.Text(), nullable=False, server_default=""))
    op.drop_column("validations", "inference_file")
