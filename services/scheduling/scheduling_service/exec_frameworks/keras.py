"""Keras programs with one worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from scheduling_service.exec_frameworks.tensorflow import TensorFlow


class Keras(TensorFlow):
    """As tensorflow: Keras runs on it."""

    name = "keras"
    description = "A Keras program with one worker"
    examples = ("--exec-start keras --model-main keras_mnist.py --epochs 3",)
    distributions: ClassVar[Sequence[str]] = ("keras",)
