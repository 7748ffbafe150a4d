"""Trainings, validations and metrics in the database; run folders on disk."""

from pathlib import Path

MIGRATIONS = Path(__file__).parent / "migrations"
