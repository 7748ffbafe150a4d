"""Inference models and predictions in the database; their folders on disk."""

from pathlib import Path

MIGRATIONS = Path(__file__).parent / "migrations"
