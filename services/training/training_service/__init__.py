"""Trains models and validates trainings."""
