"""Metrics of predicted numbers. Every number of every vector counts alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def read_vectors(document: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true vectors [samples, length]; ValueError when one is missing or of another length."""
    found = {row["sampleId"]: row["vector"] for row in document["result"]}
    names = [row["sampleId"] for row in document["samples"]]
    if not names:
        raise ValueError("the test split has no samples")
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{len(missing)} samples have no prediction, the first is {missing[0]}")
    truth = np.array([row["groundTruth"] for row in document["samples"]], np.float64)
    predicted = np.array([found[name] for name in names], np.float64)
    if predicted.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"predictions are {list(predicted.shape)} numbers, the truth is {list(truth.shape)}")
    return predicted, truth


def mae(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute error."""
    return float(np.abs(predicted - truth).mean())


def rmse(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.square(predicted - truth).mean()))


def r2(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Coefficient of determination, the mean over the components; a constant one is 1 when met exactly, else 0."""
    residual = np.square(predicted - truth).sum(0)
    total = np.square(truth - truth.mean(0)).sum(0)
    constant = np.where(residual == 0, 1.0, 0.0)
    return float(np.where(total > 0, 1 - residual / np.where(total > 0, total, 1), constant).mean())


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {"MAE": mae, "RMSE": rmse, "R2": r2}
