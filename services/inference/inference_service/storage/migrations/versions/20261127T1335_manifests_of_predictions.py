"""Predictions of folders and of any number of files; what was predicted so far stays as it is."""

import json

import sqlalchemy as sa
from alembic import op

revision = "20261127T1335"
down_revision = "20261127T1331"
branch_labels = None
depends_on = None

COLUMNS = (
    sa.Column("model_version", sa.Integer(), nullable=False, server_default="1"),
    sa.Column("input_path", sa.Text(), nullable=False, server_default=""),
    sa.Column("sample_count", sa.BigInteger(), nullable=False, server_default="0"),
    sa.Column("done", sa.BigInteger(), nullable=False, server_default="0"),
    sa.Column("result_type", sa.String(length=16), nullable=False, server_default="classification"),
    sa.Column("result_file", sa.String(length=32), nullable=False, server_default="results.json"),
    sa.Column("are_images", sa.Boolean(), nullable=False, server_default=sa.true()),
)


def upgrade() -> None:
    with op.batch_alter_table("predictions") as table:
        for column in COLUMNS:
            table.add_column(column)
    connection = op.get_bind()
    for uid, samples, progress in connection.execute(sa.text("SELECT uid, samples, progress FROM predictions")).all():
        count = len(samples if isinstance(samples, list) else json.loads(samples))
        connection.execute(
            sa.text("UPDATE predictions SET sample_count = :count, done = :done WHERE uid = :uid"),
            {"count": count, "done": count * progress // 100, "uid": uid},
        )
    with op.batch_alter_table("predictions") as table:
        table.drop_column("progress")
        for column in COLUMNS:
            table.alter_column(column.name, existing_type=column.type, server_default=None)
