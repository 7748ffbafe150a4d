"""Metrics of predicted numbers. Every number of every vector counts alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from training_service.worker.result_file import ResultFile, Row, is_finite, listed


def read_vectors(result: ResultFile) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true vectors [samples, length]; ValueError when one is missing, of another length or not finite."""
    found = {row["sampleId"]: _numbers(row, "vector") for row in result.rows}
    if missing := [row["sampleId"] for row in result.samples if row["sampleId"] not in found]:
        raise ValueError(f"samples without a prediction: {listed(missing)}")
    truth = [_numbers(row, "groundTruth") for row in result.samples]
    predicted = [found[row["sampleId"]] for row in result.samples]
    length = len(truth[0])
    for row, *vectors in zip(result.samples, truth, predicted, strict=True):
        if any(len(vector) != length for vector in vectors):
            lengths = " and ".join(str(len(vector)) for vector in vectors)
            raise ValueError(f"sample {row['sampleId']!r}: vectors of {lengths} numbers, the first one has {length}")
    return np.array(predicted, np.float64), np.array(truth, np.float64)


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
    # Not by the total: that of equal numbers may be a little more than 0.
    varies = (truth != truth[0]).any(0) & (total > 0)
    constant = np.where(residual == 0, 1.0, 0.0)
    return float(np.where(varies, 1 - residual / np.where(varies, total, 1), constant).mean())


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {"MAE": mae, "RMSE": rmse, "R2": r2}


def _numbers(row: Row, field: str) -> list[float]:
    numbers = row[field]
    if not isinstance(numbers, list) or not numbers:
        raise ValueError(f"sample {row['sampleId']!r}: {field} is no list of numbers")
    for number in numbers:
        if not is_finite(number):
            raise ValueError(f"sample {row['sampleId']!r}: {field} has {str(number)[:50]}, which is no finite number")
    return numbers
