"""What was asked for of any source type in one column; an index for pages of one owner."""

import sqlalchemy as sa
from alembic import op

revision = "20261123T1620"
down_revision = "20261123T1415"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("datasets") as table:
        table.add_column(sa.Column("options", sa.JSON()))
    rows = sa.table("datasets", sa.column("uid"), sa.column("images", sa.JSON()), sa.column("options", sa.JSON()))
    connection = op.get_bind()
    for uid, images in connection.execute(sa.select(rows.c.uid, rows.c.images)).all():
        connection.execute(sa.update(rows).where(rows.c.uid == uid).values(options={"images": images}))
    with op.batch_alter_table("datasets") as table:
        table.alter_column("options", existing_type=sa.JSON(), nullable=False)
        table.drop_column("images")
        table.create_index("ix_datasets_owner_name", ["owner", "name"])
