"""Trainings, validations and metrics in the database; run folders on disk."""
