"""The metrics of a validation, from the result file that inference_helper writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training_service.worker import classification_metrics, detection_metrics, vector_metrics
from training_service.worker.result_file import ResultFile, read_result


def measure(
    file: Path, metrics: Sequence[str], labels: Sequence[str], threshold: float, names: Sequence[str] | None = None
) -> dict[str, str]:
    """The value of each of `metrics` as text; what is less probable than `threshold` does not count.

    `labels` are those of the dataset and `names` the samples of the split, if known. ValueError when the file is
    missing or no result with ground truth, or not one of these samples or for these metrics.
    """
    try:
        return _measure(read_result(file, names), metrics, labels, threshold)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file.name} is not a result file of inference_helper: {error!r}") from error


def _measure(result: ResultFile, metrics: Sequence[str], labels: Sequence[str], threshold: float) -> dict[str, str]:
    if result.kind == "classification":
        _check_names(metrics, classification_metrics.METRICS, result.kind)
        samples = classification_metrics.read_samples(result, labels, threshold)
        return {name: classification_metrics.METRICS[name](samples, labels) for name in metrics}
    if result.kind == "detection":
        _check_names(metrics, detection_metrics.METRICS, result.kind)
        images = detection_metrics.read_images(result, labels, threshold)
        return {name: f"{detection_metrics.METRICS[name](images):.6g}" for name in metrics}
    if result.kind == "vector":
        _check_names(metrics, vector_metrics.METRICS, result.kind)
        predicted, truth = vector_metrics.read_vectors(result)
        return {name: f"{vector_metrics.METRICS[name](predicted, truth):.6g}" for name in metrics}
    raise ValueError(f"type {result.kind!r} is not known; allowed: classification, detection, vector")


def _check_names(metrics: Sequence[str], known: Mapping[str, Any], kind: str) -> None:
    """ValueError when one of `metrics` is not for results of this kind."""
    if wrong := [name for name in metrics if name not in known]:
        raise ValueError(f"{', '.join(wrong)}: not for a result of type {kind}, which has {', '.join(known)}")
