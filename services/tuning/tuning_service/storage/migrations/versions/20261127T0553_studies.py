"""Studies, trials and installed algorithms."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from servicekit.database import UtcDateTime

revision = "20261127T0553"
down_revision = "20261123_1350"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("uid", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("model_uid", sa.String(64), nullable=False),
        sa.Column("model_name", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(256), nullable=False),
        sa.Column("owner_is_administrator", sa.Boolean(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("group_id", sa.String(128), nullable=False),
        sa.Column("group_name", sa.String(128), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("known", sa.JSON(), nullable=False),
        sa.Column("upload", sa.Text(), nullable=False),
        sa.Column("upload_name", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("resumed_at", UtcDateTime()),
        sa.Column("ended_at", UtcDateTime()),
        sa.Column("run_seconds", sa.Float(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("status_message", sa.Text(), nullable=False),
        sa.Column("stop_requested", sa.Boolean(), nullable=False),
        sa.Column("is_exhausted", sa.Boolean(), nullable=False),
        *(
            sa.Column(name, sa.Integer(), nullable=False)
            for name in ("trials", "finished", "failed", "stopped", "best", "improved_at", "change")
        ),
        sa.Column("best_loss", sa.Double()),
        sa.Column("is_tended", sa.Boolean(), nullable=False),
        sa.Column("deleted_at", UtcDateTime()),
    )
    op.create_index("ix_studies_owner", "studies", ["owner"])
    live = sa.text("deleted_at IS NULL")
    op.create_index(
        "studies_live_name", "studies", ["model_uid", "name"], unique=True, sqlite_where=live, postgresql_where=live
    )
    tended = sa.text("is_tended")
    op.create_index("studies_tended", "studies", ["is_tended"], sqlite_where=tended, postgresql_where=tended)
    op.create_table(
        "trials",
        sa.Column("study_uid", sa.String(32), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("uid", sa.String(32), nullable=False, unique=True),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("place", sa.JSON()),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("stop_reason", sa.Text(), nullable=False),
        sa.Column("objectives", sa.JSON(), nullable=False),
        sa.Column("loss", sa.Double()),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("curve", sa.JSON(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("kills", sa.Integer(), nullable=False),
        sa.Column("started_at", UtcDateTime()),
        sa.Column("ended_at", UtcDateTime()),
        sa.Column("driver_id", sa.String(128), nullable=False),
        sa.Column("earlier_uids", sa.JSON(), nullable=False),
        sa.Column("change", sa.Integer(), nullable=False),
    )
    op.create_index("trials_by_change", "trials", ["study_uid", "change"])
    op.create_index("trials_by_status", "trials", ["study_uid", "status", "number"])
    op.create_index("trials_by_loss", "trials", ["study_uid", "loss"])
    op.create_table(
        "algorithms",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("uid", sa.String(32), nullable=False, unique=True),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("conda_home", sa.Text(), nullable=False),
        sa.Column("conda_environment", sa.Text(), nullable=False),
        sa.Column("remote_execution", sa.Boolean(), nullable=False),
        sa.Column("log_level", sa.String(16), nullable=False),
        sa.Column("creator", sa.String(256), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
    )
