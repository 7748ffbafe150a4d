"""Image files become the pixels of records."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets_service.domain.words import ColorMode, ResizeMode
from datasets_service.images import pixels
from datasets_service.images.pixels import PixelOptions, UnreadableImageError, encode, read_pixels, resize
from PIL import Image, ImageFilter

WIDE = np.array([[10, 20, 30, 40, 50, 60, 70, 80], [15, 25, 35, 45, 55, 65, 75, 85]], np.uint8)


@pytest.mark.parametrize(
    ("mode", "frame", "expected"),
    [
        # An image that is as large as the frame in one axis is not scaled, so that pixels can be told exactly.
        (ResizeMode.CROP, (2, 2), [[40, 50], [45, 55]]),
        (ResizeMode.FILL, (8, 4), [[0] * 8, WIDE[0], WIDE[1], [0] * 8]),
        (ResizeMode.SQUASH, (8, 2), WIDE),
        # Scales 0.5 and 1.5: between them is 1.
        (ResizeMode.HALF_CROP_HALF_FILL, (4, 3), [[30, 40, 50, 60], [35, 45, 55, 65], [0] * 4]),
    ],
)
def test_resize_modes_to_the_pixel(mode: ResizeMode, frame: tuple[int, int], expected: Any) -> None:
    options = PixelOptions(ColorMode.GRAY, *frame, mode)
    assert np.array_equal(np.asarray(resize(Image.fromarray(WIDE), options)), np.array(expected, np.uint8))


def test_squash_scales_both_axes() -> None:
    squashed = resize(Image.fromarray(WIDE), PixelOptions(ColorMode.GRAY, 2, 2, ResizeMode.SQUASH))
    expected = Image.fromarray(WIDE).resize((2, 2), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(squashed), np.asarray(expected))


@pytest.mark.parametrize("mode", ResizeMode)
@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (7, 5), (1, 1)])
def test_every_shape_becomes_the_frame(mode: ResizeMode, size: tuple[int, int]) -> None:
    assert resize(Image.new("RGB", size), PixelOptions(ColorMode.COLOR, 16, 9, mode)).size == (16, 9)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_kind_of_image_is_read(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.new(mode, (5, 4)).save(file)
    for color, shape in ((ColorMode.GRAY, (2, 3)), (ColorMode.COLOR, (2, 3, 3))):
        assert read_pixels(file.read_bytes(), PixelOptions(color, 3, 2, ResizeMode.SQUASH)).shape == shape


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "x.png")
    values = read_pixels((tmp_path / "x.png").read_bytes(), PixelOptions(ColorMode.GRAY, 4, 4, ResizeMode.SQUASH))
    assert values.max() == values.min() == 0x80


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth noise: what a camera's picture is to a decoder."""
    small = np.random.default_rng(0).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return image.filter(ImageFilter.GaussianBlur(1)).convert(mode)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ResizeMode)
@pytest.mark.parametrize("color", ColorMode)
@pytest.mark.parametrize("size", [(640, 480), (301, 517), (64, 48)])
def test_a_jpeg_that_is_scaled_while_decoding_looks_like_one_that_is_not(
    mode: ResizeMode, color: ColorMode, size: tuple[int, int]
) -> None:
    content = jpeg(photograph(*size))
    options = PixelOptions(color, 96, 80, mode)
    quick = read_pixels(content, options).astype(int)
    whole = resize(Image.open(io.BytesIO(content)).convert("RGB" if color is ColorMode.COLOR else "L"), options)
    difference = np.abs(quick - np.asarray(whole, int))
    assert quick.shape == np.asarray(whole).shape
    assert difference.mean() < 2.5


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_unreadable(progressive: bool) -> None:
    content = jpeg(photograph(200, 150), progressive=progressive)
    with pytest.raises(UnreadableImageError):
        read_pixels(content[: len(content) // 2], PixelOptions(ColorMode.COLOR, 32, 32, ResizeMode.SQUASH))


def test_a_cmyk_jpeg_is_read() -> None:
    options = PixelOptions(ColorMode.COLOR, 32, 32, ResizeMode.SQUASH)
    assert read_pixels(jpeg(photograph(200, 150, "CMYK")), options).shape == (32, 32, 3)


@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
def test_bombs_are_errors(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "MAX_OTHER_PIXELS", 100)
    monkeypatch.setattr(pixels, "MAX_JPEG_PIXELS", 100)
    file = io.BytesIO()
    Image.new("L", (11, 10)).save(file, suffix)
    with pytest.raises(UnreadableImageError, match="11 x 10 pixels; at most 100 are decoded"):
        read_pixels(file.getvalue(), PixelOptions(ColorMode.GRAY, 4, 4, ResizeMode.SQUASH))


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_what_is_encoded_without_loss_comes_back(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    content, image_format = encode(values, lossy=False)
    assert image_format == "png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), values)
    content, image_format = encode(values, lossy=True)
    assert image_format == Image.open(io.BytesIO(content)).format.lower() == "jpeg"
    assert np.asarray(Image.open(io.BytesIO(content))).shape == shape
