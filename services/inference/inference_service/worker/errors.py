"""How a prediction ends that cannot be made."""

from __future__ import annotations


class PredictionError(Exception):
    """The prediction cannot be made; the text says why."""
