"""Caffe's `Datum` message by hand: pixels are never copied on the way, and no generated code is needed to read them."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from recordkit.image_files import decode_image

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CHANNELS, _HEIGHT, _WIDTH, _DATA, _LABEL, _FLOAT_DATA, _ENCODED = range(1, 8)
_SIZES = (_CHANNELS, _HEIGHT, _WIDTH)
_ALL_WIRE_TYPES = (_VARINT, _FIXED64, _BYTES, _FIXED32)
# Field 0 cannot be; floats may come one by one or packed.
_WIRE_TYPES = {
    0: (),
    **dict.fromkeys((*_SIZES, _LABEL, _ENCODED), (_VARINT,)),
    _DATA: (_BYTES,),
    _FLOAT_DATA: (_FIXED32, _BYTES),
}


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
        numbers: dict[int, int] = {}
        data: bytes | memoryview = b""
        vector: list[float] = []
        position, end = 0, len(record)
        while position < end:
            key, position = _read_varint(record, position)
            number, wire_type = key >> 3, key & 7
            if wire_type not in _WIRE_TYPES.get(number, _ALL_WIRE_TYPES):
                raise ValueError(f"not a Datum record: field {number} has wire type {wire_type}")
            if wire_type == _VARINT:
                numbers[number], position = _read_varint(record, position)
                continue
            if wire_type == _BYTES:
                length, position = _read_varint(record, position)
            else:
                length = 4 if wire_type == _FIXED32 else 8
            if position + length > end:
                raise ValueError("not a Datum record: it is cut short")
            value = record[position : position + length]
            position += length
            if number == _DATA:
                data = value
            elif number == _FLOAT_DATA:
                if length % 4:
                    raise ValueError(f"not a Datum record: {length} bytes of float_data")
                vector += struct.unpack(f"<{length // 4}f", value)
        channels, height, width, label = (_signed(numbers.get(field, 0)) for field in (*_SIZES, _LABEL))
        return cls(channels, height, width, memoryview(data), label, bool(numbers.get(_ENCODED, 0)), tuple(vector))

    def image(self) -> Image.Image:
        """The record as a PIL image, mode L or RGB; ValueError when it is none."""
        if self.encoded:
            return decode_image(self.data)
        size = (self.channels, self.height, self.width)
        if self.channels not in (1, 3) or min(size) < 1 or math.prod(size) != len(self.data):
            raise ValueError(f"{len(self.data)} bytes are no image of {self.channels}x{self.height}x{self.width}")
        pixels = np.frombuffer(self.data, np.uint8).reshape(size)
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
    # Negative numbers are written as 64 bits, as protobuf does.
    return _varint(field << 3) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _signed(value: int) -> int:
    """The int32 that these bits mean."""
    return ((value & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000


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
