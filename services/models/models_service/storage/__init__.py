"""Tables and the catalog over them."""

from pathlib import Path

MIGRATIONS = Path(__file__).parent / "migrations"
