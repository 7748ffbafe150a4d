"""Images as `tf.train.Example`, with the feature names that TensorFlow's image pipelines use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlmesh.datasets.v1 import records_pb2
from google.protobuf.message import DecodeError
from PIL import Image

from recordkit.image_files import decode_image


@dataclass(frozen=True)
class ImageExample:
    """One image: `encoded` is a whole file in `format` (jpeg or png), sizes are pixels, `label` is the label's index
    and `text` its name. `label` is -1 when the record has none; `vector` is the target vector when there is one."""

    encoded: bytes
    format: str
    height: int
    width: int
    channels: int
    label: int = -1
    text: str = ""
    filename: str = ""
    vector: tuple[float, ...] = ()

    def serialize(self) -> bytes:
        """As a record of a TFRecord file."""
        colorspace = b"RGB" if self.channels == 3 else b"Gray"
        features = {
            "image/encoded": _bytes(self.encoded),
            "image/format": _bytes(self.format.encode()),
            "image/height": _numbers(self.height),
            "image/width": _numbers(self.width),
            "image/channels": _numbers(self.channels),
            "image/colorspace": _bytes(colorspace),
            "image/filename": _bytes(self.filename.encode(errors="surrogateescape")),
        }
        if self.label >= 0:
            features["image/class/label"] = _numbers(self.label)
            features["image/class/text"] = _bytes(self.text.encode())
        if self.vector:
            features["image/vector"] = _floats(self.vector)
        message = records_pb2.Example(features=records_pb2.Features(feature=features))
        # Maps have no order of their own; the same image must give the same record.
        return message.SerializeToString(deterministic=True)

    @classmethod
    def parse(cls, record: bytes) -> ImageExample:
        """Decode a record; ValueError when it is no tf.train.Example or has no image."""
        try:
            feature = records_pb2.Example.FromString(record).features.feature
        except DecodeError as error:
            raise ValueError(f"not a tf.train.Example: {error}") from error
        encoded = _first(feature["image/encoded"].bytes_list.value, b"") if "image/encoded" in feature else b""
        if not encoded:
            raise ValueError("a tf.train.Example without image/encoded")
        return cls(
            encoded=encoded,
            format=_text(feature, "image/format"),
            height=_number(feature, "image/height", 0),
            width=_number(feature, "image/width", 0),
            channels=_number(feature, "image/channels", 0),
            label=_number(feature, "image/class/label", -1),
            text=_text(feature, "image/class/text"),
            filename=_text(feature, "image/filename"),
            vector=tuple(feature["image/vector"].float_list.value) if "image/vector" in feature else (),
        )

    def image(self) -> Image.Image:
        """The image, mode L or RGB; ValueError when it is none."""
        return decode_image(self.encoded)


def _bytes(value: bytes) -> records_pb2.Feature:
    return records_pb2.Feature(bytes_list=records_pb2.BytesList(value=[value]))


def _numbers(*values: int) -> records_pb2.Feature:
    return records_pb2.Feature(int64_list=records_pb2.Int64List(value=values))


def _floats(values: Sequence[float]) -> records_pb2.Feature:
    return records_pb2.Feature(float_list=records_pb2.FloatList(value=values))


def _first(values: Sequence[bytes], default: bytes) -> bytes:
    return values[0] if values else default


def _text(feature: Mapping[str, records_pb2.Feature], name: str) -> str:
    return _first(feature[name].bytes_list.value, b"").decode(errors="surrogateescape") if name in feature else ""


def _number(feature: Mapping[str, records_pb2.Feature], name: str, default: int) -> int:
    values = feature[name].int64_list.value if name in feature else ()
    return int(values[0]) if values else default
