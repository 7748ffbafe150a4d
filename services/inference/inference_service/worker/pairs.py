"""Samples compared two by two, in the order of the upload."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from inference_service.worker.errors import PredictionError


def compared(rows: Sequence[dict[str, Any]], model: Any) -> Iterator[dict[str, Any]]:
    """A row for each pair of an even number of rows with vectors."""
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        pair = {"sampleId1": first["sampleId"], "sampleId2": second["sampleId"], "file": first["file"]}
        errors = [f"{row['sampleId']}: {row['error']}" for row in (first, second) if "error" in row]
        if errors:
            yield {**pair, "error": "; ".join(errors)}
            continue
        try:
            distance, is_similar = model.compare(first["vector"], second["vector"])
        except (KeyError, ValueError) as error:
            raise PredictionError(f"the model's answer cannot be compared: {error!r}") from error
        yield {**pair, "distance": float(distance), "isSimilar": bool(is_similar)}
