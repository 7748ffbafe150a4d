"""The network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Features of each hidden layer.
HIDDEN = (128, 128)
DROPOUT = 0.1
# The most numbers that stand for a text.
EMBEDDING = 16


class TableNet(nn.Module):
    """Rows, as numbers [B, N] and indices of texts [B, M], to logits or standardised numbers [B, outputs]."""

    def __init__(self, numbers: int, texts: Sequence[int], outputs: int) -> None:
        super().__init__()
        widths = [min(EMBEDDING, size // 2 + 1) for size in texts]
        self.embeddings = nn.ModuleList(
            nn.Embedding(size + 1, width) for size, width in zip(texts, widths, strict=True)
        )
        for embedding in self.embeddings:
            # What is not known says nothing, unless rare texts in training teach otherwise.
            nn.init.zeros_(embedding.weight[0])
        layers: list[nn.Module] = []
        features = numbers + sum(widths)
        for hidden in HIDDEN:
            layers += [nn.Linear(features, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(DROPOUT)]
            features = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(features, outputs))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        numbers, texts = inputs
        embedded = [embedding(texts[:, column]) for column, embedding in enumerate(self.embeddings)]
        # The weights may be of a smaller type.
        return self.layers(torch.cat([numbers.to(self.layers[-1].weight.dtype), *embedded], 1))


def build_model(numbers: int, texts: Sequence[int], outputs: int) -> nn.Module:
    """For `numbers` columns of numbers and columns of text with so many known values each.

    A column of numbers is two inputs: its value, and whether there was none.
    """
    return TableNet(2 * numbers, texts, outputs)
