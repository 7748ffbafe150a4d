"""The metrics of a validation, from the result file that inference_helper writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training_service.worker import classification_metrics, detection_metrics, vector_metrics


def measure(file: Path, metrics: Sequence[str], labels: Sequence[str], threshold: float) -> dict[str, str]:
    """The value of each of `metrics` as text; what is less probable than `threshold` does not count.

    OSError when the file is missing; ValueError when it is no result with ground truth, or not one for these metrics.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or "samples" not in document:
            raise ValueError(
                f"{file.name} has no ground truth: inference.py must pass ground_truth when --validate is true"
            )
        return _measure(document, metrics, labels, threshold)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file.name} is not a result file of inference_helper: {error!r}") from error


def _measure(
    document: Mapping[str, Any], metrics: Sequence[str], labels: Sequence[str], threshold: float
) -> dict[str, str]:
    kind = document.get("type")
    if kind == "classification":
        _check_names(metrics, classification_metrics.METRICS, kind)
        samples = classification_metrics.read_samples(document, threshold)
        return {name: classification_metrics.METRICS[name](samples, labels) for name in metrics}
    if kind == "detection":
        _check_names(metrics, detection_metrics.METRICS, kind)
        images = detection_metrics.read_images(document, threshold)
        return {name: f"{detection_metrics.METRICS[name](images):.6g}" for name in metrics}
    if kind == "vector":
        _check_names(metrics, vector_metrics.METRICS, kind)
        predicted, truth = vector_metrics.read_vectors(document)
        return {name: f"{vector_metrics.METRICS[name](predicted, truth):.6g}" for name in metrics}
    raise ValueError(f"type {kind!r} is not known; allowed: classification, detection, vector")


def _check_names(metrics: Sequence[str], known: Mapping[str, Any], kind: str) -> None:
    """ValueError when one of `metrics` is not for results of this kind."""
    if wrong := [name for name in metrics if name not in known]:
        raise ValueError(f"{', '.join(wrong)}: not for a result of type {kind}, which has {', '.join(known)}")
