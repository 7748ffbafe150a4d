"""What the template for comparing pictures learns by: vectors that are near each other where labels are the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dlmesh_sdk.served.inference import Predictor

BATCH_SIZE = 256
# How much nearer than others the alike are to be; the smaller the nearer.
TEMPERATURE = 0.1
# Pictures whose pairs the limit is learned from.
MOST_PAIRED = 2000
_CHUNK = 512


def alike_loss(vectors: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss of vectors [n, length] of length 1 (Khosla et al., 2020), 0 where no two are alike.

    Of each picture that has alike ones in the batch: how improbable these are among all others, by similarity.
    """
    similarity = vectors.float() @ vectors.float().T / TEMPERATURE
    others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    alike = (labels[:, None] == labels[None, :]) & others
    logs = similarity - similarity.masked_fill(~others, -torch.inf).logsumexp(1, keepdim=True)
    counts = alike.sum(1)
    has_alike = counts > 0
    if not bool(has_alike.any()):
        return vectors.sum() * 0
    return -((logs * alike).sum(1)[has_alike] / counts[has_alike]).mean()


def nearest_accuracy(vectors: Tensor, labels: Tensor) -> Tensor:
    """Share of the pictures of a batch whose nearest other one has the same label."""
    if len(labels) < 2:
        return torch.zeros(())
    distances = torch.cdist(vectors.float(), vectors.float()).fill_diagonal_(torch.inf)
    return (labels[distances.argmin(1)] == labels).float().mean()


def embed(predict: Predictor, samples: Dataset[Any]) -> tuple[Tensor, Tensor]:
    """Vectors [n, length] and targets [n] of all samples."""
    vectors, targets = [], []
    for images, labels in DataLoader(samples, batch_size=BATCH_SIZE):
        vectors.append(predict({"INPUT__0": images})["OUTPUT__0"])
        targets.append(labels)
    return torch.cat(vectors), torch.cat(targets)


def find_limit(vectors: Tensor, labels: Tensor) -> tuple[float, float]:
    """The distance that tells pairs of one label from pairs of two best, and the share of pairs that it is right for.

    Both kinds of pairs count alike, though there are far more of two labels. Where one kind is missing, half the
    largest distance and 0.
    """
    step = max(1, len(labels) // MOST_PAIRED)
    vectors, labels = vectors[::step][:MOST_PAIRED].double(), labels[::step][:MOST_PAIRED]
    first, second = torch.triu_indices(len(labels), len(labels), 1)
    distances, order = torch.pdist(vectors).sort()
    alike = (labels[first] == labels[second])[order]
    if not bool(alike.any()) or bool(alike.all()):
        return 1.0, 0.0
    # Right for the alike below a place in this order, and for the others above it.
    right = alike.double().cumsum(0) / alike.sum() + 1 - (~alike).double().cumsum(0) / (~alike).sum()
    place = int(right.argmax())
    above = distances[min(place + 1, len(distances) - 1)]
    return float((distances[place] + above) / 2), float(right[place] / 2)


def label_probabilities(vectors: Tensor, labels: Tensor, classes: int) -> Tensor:
    """For each picture what the nearest other ones of each label say of its own [n, classes]; rows add up to 1."""
    found = []
    for start in range(0, len(labels), _CHUNK):
        chunk = vectors[start : start + _CHUNK]
        distances = torch.cdist(chunk, vectors)
        distances[torch.arange(len(chunk)), torch.arange(start, start + len(chunk))] = torch.inf
        nearest = torch.full((len(chunk), classes), torch.inf)
        nearest.scatter_reduce_(1, labels.expand(len(chunk), -1), distances, "amin")
        found.append(nearest)
    # By squares: as probable as the loss has it.
    return torch.softmax(-torch.cat(found).square() / (2 * TEMPERATURE), 1).nan_to_num(1 / classes)
