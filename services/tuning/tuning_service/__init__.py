"""Hyperparameter search and model tuning."""
