"""Columns are called as the fields of the contract."""

from alembic import op

revision = "20261126T2030"
down_revision = "20261125T1615"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for before, after in (
        ("gpu_ratio", "gpu_percentage"),
        ("test_iteration", "test_iterations"),
        ("weights_file", "initial_weights"),
    ):
        op.execute(f"ALTER TABLE trainings RENAME COLUMN {before} TO {after}")
