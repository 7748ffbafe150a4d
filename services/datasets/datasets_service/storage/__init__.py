"""Datasets in the database, their records on disk."""

from pathlib import Path

MIGRATIONS = Path(__file__).parent / "migrations"
