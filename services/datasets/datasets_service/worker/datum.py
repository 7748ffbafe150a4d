"""Caffe's `Datum` message, written by hand: five fields need no generated code and no protobuf at start."""

from __future__ import annotations

import numpy as np


def encode_datum(pixels: np.ndarray, label: int) -> bytes:
    """Serialize uint8 [channels, height, width] and the label's index."""
    channels, height, width = pixels.shape
    data = pixels.tobytes()
    return b"".join(
        (
            _number(1, channels),
            _number(2, height),
            _number(3, width),
            _varint(4 << 3 | 2) + _varint(len(data)) + data,
            _number(5, label),
            _number(7, 0),  # encoded: false
        )
    )


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
