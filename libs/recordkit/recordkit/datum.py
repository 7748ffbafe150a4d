"""Caffe's `Datum` message by hand: pixels are never copied on the way, and no generated code is needed to read them."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CHANNELS, _HEIGHT, _WIDTH, _DATA, _LABEL, _FLOAT_DATA, _ENCODED = range(1, 8)


@dataclass(frozen=True)
class Datum:
    """One record: uint8 pixels in CHW order (BGR when there are three channels), or an encoded image file; the label's
    index; the target vector when there is one."""

    channels: int
    height: int
    width: int
    data: bytes | memoryview
    label: int
    encoded: bool = False
    vector: tuple[float, ...] = ()

    @classmethod
    def parse(cls, record: bytes | memoryview) -> Datum:
        """Decode a serialized Caffe `Datum`; ValueError when it is not one. `data` is a part of `record`."""
        fields: dict[int, Any] = {}
        vector: list[float] = []
        position, end = 0, len(record)
        while position < end:
            key, position = _read_varint(record, position)
            number, wire_type = key >> 3, key & 7
            if wire_type == _VARINT:
                fields[number], position = _read_varint(record, position)
                continue
            if wire_type == _BYTES:
                length, position = _read_varint(record, position)
            elif wire_type in (_FIXED32, _FIXED64):
                length = 4 if wire_type == _FIXED32 else 8
            else:
                raise ValueError(f"not a Datum record: wire type {wire_type}")
            if position + length > end:
                raise ValueError("not a Datum record: it is cut short")
            value = record[position : position + length]
            position += length
            if number == _FLOAT_DATA:
                vector += struct.unpack(f"<{length // 4}f", value)
            else:
                fields[number] = value
        try:
            return cls(
                channels=int(fields.get(_CHANNELS, 0)),
                height=int(fields.get(_HEIGHT, 0)),
                width=int(fields.get(_WIDTH, 0)),
                data=memoryview(fields.get(_DATA, b"")),
                label=int(fields.get(_LABEL, 0)),
                encoded=bool(fields.get(_ENCODED, 0)),
                vector=tuple(vector),
            )
        except (TypeError, ValueError) as error:
            raise ValueError("not a Datum record: a field has another type") from error

    def image(self) -> Image.Image:
        """The record as a PIL image, mode L or RGB; ValueError when its pixels do not fit its size."""
        if self.encoded:
            return Image.open(io.BytesIO(self.data))
        pixels = np.frombuffer(self.data, np.uint8).reshape(self.channels, self.height, self.width)
        if self.channels == 1:
            # A copy: the record may be memory that goes away.
            return Image.fromarray(pixels[0].copy())
        return Image.fromarray(np.ascontiguousarray(pixels[::-1].transpose(1, 2, 0)))


def encode_datum(pixels: np.ndarray, label: int, vector: Sequence[float] = ()) -> bytes:
    """Serialize uint8 [channels, height, width], the label's index and a target vector."""
    channels, height, width = pixels.shape
    data = pixels.tobytes()
    floats = (bytes([_FLOAT_DATA << 3 | _FIXED32]) + struct.pack("<f", value) for value in vector)
    return b"".join(
        (
            _number(_CHANNELS, channels),
            _number(_HEIGHT, height),
            _number(_WIDTH, width),
            _varint(_DATA << 3 | _BYTES) + _varint(len(data)),
            data,
            _number(_LABEL, label),
            *floats,
            _number(_ENCODED, 0),
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


def _read_varint(buffer: bytes | memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(buffer) or shift > 63:
            raise ValueError("not a Datum record: it is cut short")
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
