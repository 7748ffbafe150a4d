"""Studies, trials and installed algorithms in the database; uploads and plug-ins on disk."""

from pathlib import Path

MIGRATIONS = Path(__file__).parent / "migrations"
