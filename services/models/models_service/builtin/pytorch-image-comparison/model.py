"""The network, and the one way from a picture to its input."""

import numpy as np
from PIL import Image
from torch import Tensor, nn


class Embedder(nn.Module):
    """Pictures [B, C, H, W] to vectors [B, length] of length 1, near each other where the pictures are alike.

    Strided layers first halve the picture until its shorter side is at most 16.
    """

    def __init__(self, length: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        side, features = min(height, width), 32
        while side > 16:
            layers += _block(channels, features, stride=2)
            channels, features, side = features, min(features * 2, 128), (side + 1) // 2
        layers += _block(channels, features, stride=1)
        layers += _block(features, 128, stride=2)
        layers += _block(128, 128, stride=1)
        layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128 * 4, length)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.layers(images).float())


def build_model(length: int, channels: int, height: int, width: int) -> nn.Module:
    """A small CNN for pictures of 8x8 to 256x256 and more, and vectors of `length` numbers."""
    return Embedder(length, channels, height, width)


def preprocess(image: Image.Image, channels: int, height: int, width: int) -> np.ndarray:
    """A picture as float32 [channels, height, width] in -1..1."""
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / 127.5 - 1.0
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
    return [convolution, nn.GroupNorm(8, outputs), nn.ReLU()]
