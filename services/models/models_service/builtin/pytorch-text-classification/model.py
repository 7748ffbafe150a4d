"""The network: a transformer encoder."""

import math

import torch
from torch import Tensor, nn

# Numbers that stand for a token; heads of attention, each with its part of them; blocks.
WIDTH = 128
HEADS = 4
BLOCKS = 2
DROPOUT = 0.1


class Classifier(nn.Module):
    """Tokens [B, T], 0 for padding, to logits [B, labels]; the first token of a text stands for all of it."""

    def __init__(self, tokens: int, length: int, labels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, WIDTH)
        # Positions that no training text reached have a meaning, too.
        self.register_buffer("positions", positions(length, WIDTH), persistent=False)
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, labels)

    def forward(self, tokens: Tensor) -> Tensor:
        is_text = (tokens != 0)[:, None, None, :]
        values = self.dropout(self.embedding(tokens) + self.positions[: tokens.shape[1]])
        for block in self.blocks:
            values = block(values, is_text)
        return self.output(self.norm(values[:, 0]))


class Block(nn.Module):
    """Values [B, T, WIDTH] to such; each position looks at those where `is_text` [B, 1, 1, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.layers_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.asked = nn.Linear(WIDTH, 3 * WIDTH)
        self.found = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, values: Tensor, is_text: Tensor) -> Tensor:
        batch, length, _ = values.shape
        # Query, key and value of each head, [B, HEADS, T, WIDTH / HEADS].
        parts = self.asked(self.attention_norm(values)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*parts, attn_mask=is_text)
        values = values + self.dropout(self.found(seen.transpose(1, 2).reshape(batch, length, WIDTH)))
        return values + self.dropout(self.layers(self.layers_norm(values)))


def positions(length: int, width: int) -> Tensor:
    """Sines and cosines [length, width] whose waves are from 2 pi to 20000 pi positions long."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def build_model(tokens: int, length: int, labels: int) -> nn.Module:
    """For so many different tokens, tokens of a text at most, and labels."""
    return Classifier(tokens, length, labels)
