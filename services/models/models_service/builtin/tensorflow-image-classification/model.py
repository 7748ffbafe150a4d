"""The network, and the one way from a picture to its input."""

import keras
import numpy as np
from keras import layers
from PIL import Image


def build_model(num_classes: int, channels: int, height: int, width: int) -> keras.Model:
    """A small CNN for pictures of 8x8 to 256x256 and more; it answers logits.

    Strided layers first halve the picture until its shorter side is at most 16. GroupNormalization, because it does
    not depend on the size of a worker's batch.
    """
    picture = value = keras.Input((height, width, channels))
    side, features = min(height, width), 32
    while side > 16:
        value = _block(value, features, strides=2)
        features, side = min(features * 2, 128), (side + 1) // 2
    value = _block(value, features, strides=1)
    value = _block(value, 128, strides=2)
    value = _block(value, 128, strides=1)
    value = layers.Flatten()(layers.AveragePooling2D(2, padding="same")(value))
    return keras.Model(picture, layers.Dense(num_classes)(value))


def preprocess(image: Image.Image, channels: int, height: int, width: int) -> np.ndarray:
    """A picture as float32 [height, width, channels] in -1..1."""
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / 127.5 - 1.0
    return pixels[:, :, None] if channels == 1 else pixels


def _block(value: keras.KerasTensor, features: int, strides: int) -> keras.KerasTensor:
    value = layers.Conv2D(features, 3, strides=strides, padding="same", use_bias=False)(value)
    return layers.ReLU()(layers.GroupNormalization(8)(value))
