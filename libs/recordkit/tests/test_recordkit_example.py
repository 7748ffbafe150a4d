"""Images as tf.train.Example: TensorFlow reads ours, we read TensorFlow's, and nobody's rubbish."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from dlmesh.datasets.v1 import records_pb2
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from recordkit.example import ImageExample
from recordkit.tfrecord import TFRecordFile, frame

TENSORFLOW = Path(__file__).with_name("tensorflow_records.py")


def encoded(pixels: np.ndarray, image_format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format)
    return file.getvalue()


def ask_tensorflow(task: str, path: Path) -> str:
    """In a process of its own: TensorFlow brings threads and warnings along."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(TENSORFLOW), task, str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_tensorflow_reads_our_files(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    color, grey = dice.integers(0, 256, (9, 7, 3), np.uint8), dice.integers(0, 256, (6, 8), np.uint8)
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None], (64, 64, 3)).copy()
    examples = [
        ImageExample(encoded(color, "PNG"), "png", 9, 7, 3, 2, "größe", "a/ä.png"),
        ImageExample(encoded(grey, "PNG"), "png", 6, 8, 1, 0, "zero", "b.png"),
        ImageExample(encoded(grey, "PNG"), "png", 6, 8, 1, vector=(0.5, -3.0)),
        ImageExample(encoded(smooth, "JPEG"), "jpeg", 64, 64, 3, 2**31, "", "c.jpg"),
    ]
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(b"".join(frame(example.serialize()) for example in examples))
    records: list[dict[str, Any]] = json.loads(ask_tensorflow("read", path))
    assert len(records) == len(examples)
    for record, example in zip(records, examples, strict=True):
        assert record["shape"] == [example.height, example.width, example.channels]
        assert (record["image/height"], record["image/width"]) == (example.height, example.width)
        assert record["image/channels"] == example.channels
        assert record["image/colorspace"] == ("RGB" if example.channels == 3 else "Gray")
        assert record["image/format"] == example.format
        assert record["image/filename"] == example.filename
        assert record["image/class/label"] == example.label
        assert record["image/class/text"] == example.text
        assert record["image/vector"] == list(example.vector)
    pixels = [
        np.frombuffer(bytes.fromhex(record["pixels"]), np.uint8).reshape(record["shape"]).astype(int)
        for record in records
    ]
    assert np.array_equal(pixels[0], color)
    assert np.array_equal(pixels[1][:, :, 0], grey)
    # JPEG decoders may differ by a rounding.
    assert np.abs(pixels[3] - simplejpeg.decode_jpeg(examples[3].encoded)).max() <= 2
    assert np.abs(pixels[3] - smooth).mean() < 2


@pytest.mark.slow
def test_we_read_tensorflow_files(tmp_path: Path) -> None:
    path = tmp_path / "theirs.tfrecord"
    ask_tensorflow("write", path)
    examples = [ImageExample.parse(record) for record in TFRecordFile(path)]
    assert [(one.label, one.text, one.vector) for one in examples] == [
        (label, f"größe {label}", (label / 2, -1.0)) for label in range(3)
    ]
    for label, example in enumerate(examples):
        assert (example.format, example.height, example.width, example.channels) == ("png", 4, 5, 3)
        assert np.array_equal(np.asarray(example.image()), np.full((4, 5, 3), 40 * label))


EXAMPLES = st.builds(
    ImageExample,
    encoded=st.binary(min_size=1, max_size=100),
    format=st.sampled_from(["jpeg", "png"]),
    height=st.integers(0, 2**40),
    width=st.integers(0, 2**40),
    channels=st.sampled_from([1, 3]),
    label=st.integers(0, 2**40),
    text=st.text(max_size=10),
    filename=st.binary(max_size=20).map(os.fsdecode),
    vector=st.lists(st.floats(width=32, allow_nan=False), max_size=4).map(tuple),
)


@given(EXAMPLES)
def test_an_example_comes_back_as_it_was(example: ImageExample) -> None:
    assert ImageExample.parse(example.serialize()) == example
    assert example.serialize() == example.serialize()


def test_an_example_without_label_has_none() -> None:
    example = ImageExample(b"x", "png", 1, 1, 1)
    assert "image/class/label" not in records_pb2.Example.FromString(example.serialize()).features.feature
    assert ImageExample.parse(example.serialize()).label == -1


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\x0a\x00",
        b"\xff" * 20,
        b"\x0a\xff\xff\xff\xff\x0f",
        ImageExample(b"x" * 50, "png", 1, 1, 1).serialize()[:-3],
        ImageExample(b"", "png", 1, 1, 1).serialize(),
        records_pb2.Example(
            features=records_pb2.Features(
                feature={"image/encoded": records_pb2.Feature(int64_list=records_pb2.Int64List(value=[1]))}
            )
        ).SerializeToString(),
    ],
)
def test_what_is_no_example_is_refused(record: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example|without image/encoded"):
        ImageExample.parse(record)


@given(st.data())
def test_a_damaged_example_is_one_or_a_value_error(data: st.DataObject) -> None:
    pixels = encoded(np.zeros((4, 4), np.uint8), "PNG")
    record = bytearray(ImageExample(pixels, "png", 4, 4, 1, 3, "three", "x.png", (1.0,)).serialize())
    for _ in range(data.draw(st.integers(1, 4))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        assert ImageExample.parse(bytes(record)).image().mode in ("L", "RGB")


def bomb() -> bytes:
    """A PNG that says it is 60000 x 60000."""
    content = bytearray(encoded(np.zeros((4, 4), np.uint8), "PNG"))
    content[16:24] = (60000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    "content", [b"x", b"\xff\xd8\xff\xe0", encoded(np.zeros((9, 9), np.uint8), "PNG")[:45], bomb()]
)
def test_images_that_are_none_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not an image"):
        ImageExample(content, "png", 1, 1, 1).image()
