"""A residual network, and the one way from a picture to its input."""

import numpy as np
from PIL import Image
from torch import Tensor, nn

# Blocks of each stage; every stage after the first halves the picture and doubles the features.
BLOCKS = (2, 2, 2)
# Features of the first stage, a multiple of 8.
WIDTH = 32
# Larger pictures are halved until their shorter side is at most this, before the first stage.
SIDE = 64


class Block(nn.Module):
    """Two convolutions beside a shortcut. GroupNorm, because it does not depend on the size of a worker's batch."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_convolution(inputs, outputs, stride), nn.ReLU())
        self.second = nn.Sequential(*_convolution(outputs, outputs, 1))
        # A new block passes its input on: deep stacks begin as shallow ones.
        nn.init.zeros_(self.second[-1].weight)
        is_same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if is_same else nn.Sequential(*_convolution(inputs, outputs, stride, kernel=1))

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.relu(self.second(self.first(features)) + self.shortcut(features))


def build_model(num_classes: int, channels: int, height: int, width: int) -> nn.Module:
    """A ResNet for pictures of any size, [B, channels, height, width] to logits [B, num_classes]."""
    layers: list[nn.Module] = []
    side = min(height, width)
    while side > SIDE:
        layers += [*_convolution(channels, WIDTH, stride=2), nn.ReLU()]
        channels, side = WIDTH, (side + 1) // 2
    layers += [*_convolution(channels, WIDTH, stride=1), nn.ReLU()]
    features = WIDTH
    for stage, blocks in enumerate(BLOCKS):
        for number in range(blocks):
            outputs = WIDTH << stage
            layers.append(Block(features, outputs, stride=2 if stage and not number else 1))
            features = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, num_classes)]
    return nn.Sequential(*layers)


def preprocess(image: Image.Image, channels: int, height: int, width: int) -> np.ndarray:
    """A picture as float32 [channels, height, width] in -1..1."""
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / 127.5 - 1.0
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _convolution(inputs: int, outputs: int, stride: int, kernel: int = 3) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [convolution, nn.GroupNorm(8, outputs)]
