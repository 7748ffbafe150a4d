"""Templates, models and removals."""

import sqlalchemy as sa
from alembic import op

revision = "20261123_1340"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "templates",
        sa.Column("uid", sa.String(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("framework", sa.String(32), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("directory", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("framework_version", sa.Text, nullable=False),
        sa.Column("hyperparameters", sa.JSON, nullable=False),
        sa.Column("batch_size", sa.Integer),
        sa.Column("built_in", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("uid", name="pk_templates"),
        sa.UniqueConstraint("name", name="uq_templates_name"),
    )
    op.create_table(
        "models",
        sa.Column("uid", sa.String(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("template_uid", sa.String(32), nullable=False),
        sa.Column("template_name", sa.String(128), nullable=False),
        sa.Column("framework", sa.String(32), nullable=False),
        sa.Column("directory", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("accelerator", sa.String(32), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("hyperparameters", sa.JSON, nullable=False),
        sa.Column("dataset", sa.String(128), nullable=False),
        sa.Column("batch_size", sa.Integer),
        sa.Column("instance_group_id", sa.Text, nullable=False),
        sa.Column("instance_group_name", sa.Text, nullable=False),
        sa.Column("initial_weights", sa.Text, nullable=False),
        sa.Column("weight_folder", sa.Text, nullable=False),
        sa.Column("image_dimension", sa.Text, nullable=False),
        sa.Column("framework_version", sa.Text, nullable=False),
        sa.Column("distribute_strategy", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("uid", name="pk_models"),
        sa.UniqueConstraint("name", name="uq_models_name"),
        sa.ForeignKeyConstraint(["template_uid"], ["templates.uid"], name="fk_models_template_uid"),
    )
    op.create_index("ix_models_template_uid", "models", ["template_uid"])
    op.create_table(
        "removals",
        sa.Column("directory", sa.Text, nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("directory", name="pk_removals"),
    )
    op.create_index("ix_removals_due_at", "removals", ["due_at"])
