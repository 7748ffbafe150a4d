"""How a prediction ends that cannot be made."""

from __future__ import annotations


class PredictionError(Exception):
    """The prediction cannot be made, and trying again would change nothing; the text says why."""


class AwayError(PredictionError):
    """It cannot be made now; another attempt may."""
