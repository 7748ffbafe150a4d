"""Inference models and predictions, and which of their moves are legal."""
