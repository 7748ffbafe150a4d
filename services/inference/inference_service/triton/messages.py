"""By what it says Triton's refusals are told apart: many have the same status."""

from __future__ import annotations

# UNAVAILABLE: the model has as many requests as it takes.
QUEUE_FULL = "Exceeds maximum queue size"
# UNAVAILABLE: it does not serve that model or version.
UNKNOWN_MODEL = "Request for unknown model"
# The model is there and its instances are not yet, or not any more.
NOT_READY = "not ready"
# INTERNAL: the Python process of the model has ended; Triton itself never starts it again.
DEAD_STUB = "is not healthy"
