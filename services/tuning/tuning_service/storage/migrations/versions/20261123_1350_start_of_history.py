"""Start of the history: no tables yet."""

revision = "20261123_1350"
down_revision = None


def upgrade() -> None:
    """Nothing to make."""
