"""Versions of inference models; what was served so far is version 1 with all of the traffic."""

import sqlalchemy as sa
from alembic import op
from servicekit.database import UtcDateTime

revision = "20261127T1324"
down_revision = "20261123T1420"
branch_labels = None
depends_on = None

MOVED = "source_model, training_name, framework, code_path, checkpoints_path, created_at, state, status_message"


def upgrade() -> None:
    op.create_table(
        "model_versions",
        sa.Column("model_uid", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("source_model", sa.String(length=128), nullable=False),
        sa.Column("training_name", sa.String(length=128), nullable=False),
        sa.Column("framework", sa.String(length=64), nullable=False),
        sa.Column("code_path", sa.Text(), nullable=False),
        sa.Column("checkpoints_path", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("status_message", sa.Text(), nullable=False),
        sa.Column("percentage", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("model_uid", "number"),
    )
    op.execute(
        f"INSERT INTO model_versions (model_uid, number, percentage, {MOVED}) "
        f"SELECT uid, 1, 100, {MOVED} FROM inference_models"
    )
    with op.batch_alter_table("inference_models") as table:
        for column in ("training_name", "framework", "code_path", "checkpoints_path", "state", "status_message"):
            table.drop_column(column)
        table.add_column(sa.Column("last_version", sa.Integer(), nullable=False, server_default="1"))
        table.add_column(sa.Column("last_used_at", UtcDateTime(), nullable=True))
    with op.batch_alter_table("inference_models") as table:
        table.alter_column("last_version", existing_type=sa.Integer(), server_default=None)
