"""The tables of this service."""

from __future__ import annotations

import sqlalchemy as sa
from servicekit.database import UtcDateTime

METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

TEMPLATES = sa.Table(
    "templates",
    METADATA,
    sa.Column("uid", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("framework", sa.String(32), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("directory", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("framework_version", sa.Text, nullable=False),
    sa.Column("hyperparameters", sa.JSON, nullable=False),
    sa.Column("batch_size", sa.Integer),
    sa.Column("built_in", sa.Boolean, nullable=False),
)

MODELS = sa.Table(
    "models",
    METADATA,
    sa.Column("uid", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("template_uid", sa.ForeignKey("templates.uid"), nullable=False, index=True),
    sa.Column("template_name", sa.String(128), nullable=False),
    sa.Column("framework", sa.String(32), nullable=False),
    sa.Column("directory", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("accelerator", sa.String(32), nullable=False),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("hyperparameters", sa.JSON, nullable=False),
    sa.Column("dataset", sa.String(128), nullable=False),
    sa.Column("batch_size", sa.Integer),
    sa.Column("instance_group_id", sa.Text, nullable=False),
    sa.Column("instance_group_name", sa.Text, nullable=False),
    sa.Column("initial_weights", sa.Text, nullable=False),
    sa.Column("weights_folder", sa.Text, nullable=False),
    sa.Column("image_dimension", sa.Text, nullable=False),
    sa.Column("framework_version", sa.Text, nullable=False),
    sa.Column("distribute_strategy", sa.Text, nullable=False),
)

# Orders to remove a folder (relative to the home) when `due_at` has come; see usecases.ports.Catalog.
REMOVALS = sa.Table(
    "removals",
    METADATA,
    sa.Column("directory", sa.Text, primary_key=True),
    sa.Column("due_at", UtcDateTime, nullable=False, index=True),
)
