"""A column is called as the field of the contract."""

from alembic import op

revision = "20261126_2030"
down_revision = "20261123_1340"


def upgrade() -> None:
    op.execute("ALTER TABLE models RENAME COLUMN weight_folder TO weights_folder")
