"""Pictures from strangers become pictures, or a line that says why not."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dlmesh_sdk.detection_datasets import DetectionDataset
from dlmesh_sdk.image_files import open_images
from dlmesh_sdk.served import pictures
from dlmesh_sdk.served.pictures import open_picture
from PIL import Image


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG file of some bytes that claims to be so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\x00" * 100)) + chunk(b"IEND", b"")


RED = Image.new("RGB", (40, 30), (200, 10, 20))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_formats(form: str, tmp_path: Path) -> None:
    content = encoded(RED, form)
    file = tmp_path / "picture"
    file.write_bytes(content)
    for source in (content, file):
        image = open_picture(source)
        assert image.size == (40, 30)
        assert np.abs(np.asarray(image.convert("RGB"), int) - (200, 10, 20)).max() <= 10


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"no picture", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (encoded(RED)[:-40], "."),
        (encoded(Image.effect_noise((90, 90), 80), "JPEG")[:2000], "truncated"),
        (encoded(RED)[:20], "."),
        (png_of(200_000, 200_000), "pixels"),
        (png_of(9_000, 9_000), "at most"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "."),
    ],
    ids=["empty", "text", "EPS", "cut PNG", "cut JPEG", "cut header", "bomb", "large", "junk in a PNG"],
)
def test_what_is_no_picture_is_said_in_a_line(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        open_picture(content)
    assert len(str(refusal.value).splitlines()) == 1
    assert "0x" not in str(refusal.value)


def test_only_files_of_a_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("pipe", "not a file"), ("none", "No such file"), (".", "directory|not a file")):
        with pytest.raises(ValueError, match=words):
            open_picture(tmp_path / name)
    (tmp_path / "large.png").write_bytes(encoded(RED) + b"\0" * 2000)
    assert open_picture(tmp_path / "large.png").size == (40, 30)
    monkeypatch.setattr(pictures, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ValueError, match="at most 1000"):
        open_picture(tmp_path / "large.png")


def test_the_first_of_several_pictures_counts() -> None:
    frames = [Image.new("L", (8, 8), shade) for shade in (250, 10)]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(open_picture(moving).convert("L")).min() == 250


def test_palettes_bits_and_wide_numbers_become_eight_bits() -> None:
    palette = open_picture(encoded(RED.convert("P")))
    assert palette.mode == "RGB"
    half = RED.convert("P")
    assert open_picture(encoded(half, transparency=0)).mode == "RGBA"
    assert open_picture(encoded(Image.new("1", (8, 8), 1))).convert("L").getpixel((3, 3)) == 255
    wide = np.full((8, 8), 0x80FF, np.uint16)
    assert np.asarray(open_picture(encoded(Image.fromarray(wide)))).tolist() == [[0x80] * 8] * 8
    assert open_picture(encoded(RED.convert("CMYK"), "JPEG")).mode == "CMYK"


def test_training_reads_pictures_as_serving_does(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x80FF, np.uint16)).save(tmp_path / "wide.png")
    line = json.dumps({"name": "wide.png", "path": str(tmp_path / "wide.png"), "boxes": []}).encode() + b"\n"
    (tmp_path / "annotations.jsonl").write_bytes(line)
    np.array([0, len(line)], "<u8").tofile(tmp_path / "annotations.index")

    def to_input(image: Image.Image) -> Any:
        return np.asarray(image.convert("L"), np.float32)[None]

    for dataset in (DetectionDataset(tmp_path, [], to_input), open_images(tmp_path, to_input)[1]):
        pixels, _ = dataset[0]
        np.testing.assert_array_equal(pixels.numpy(), to_input(open_picture(tmp_path / "wide.png")))
        assert pixels.max() == 0x80
