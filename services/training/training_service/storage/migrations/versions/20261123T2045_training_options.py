"""Options of a training: accelerator, command, checkpoints, restarts; the framework of a validation."""

import sqlalchemy as sa
from alembic import op

revision = "20261123T2045"
down_revision = "20261123T1400"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("dataset_type", sa.String(length=32), nullable=False, server_default=""),
        sa.Column("accelerator", sa.String(length=16), nullable=False, server_default="Native"),
        sa.Column("workers", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("min_workers", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("command", sa.Text(), nullable=False, server_default=""),
        sa.Column("distribute_strategy", sa.String(length=64), nullable=False, server_default=""),
        sa.Column("checkpoint_interval", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("checkpoints_kept", sa.Integer(), nullable=False, server_default="2"),
        sa.Column("max_restarts", sa.Integer(), nullable=False, server_default="2"),
        sa.Column("max_silent_seconds", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("weights_url", sa.Text(), nullable=False, server_default=""),
    ):
        op.add_column("trainings", column)
    op.add_column("validations", sa.Column("framework", sa.String(length=64), nullable=False, server_default="PyTorch"))
