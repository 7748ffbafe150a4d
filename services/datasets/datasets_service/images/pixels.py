"""An image file as the pixels of a record."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from datasets_service.domain.words import ColorMode, ResizeMode

# Formats that Pillow decodes itself; others (EPS) would start programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
# What decoding takes at most, copies and the process included, fits into 512 MB. A JPEG is decoded at the size
# that is needed (unless it is CMYK, which its quick decoder lacks).
MAX_JPEG_PIXELS = 48 * 1024 * 1024
MAX_OTHER_PIXELS = 24 * 1024 * 1024
# Its decoder keeps several frames.
MAX_WEBP_PIXELS = 16 * 1024 * 1024
MAX_FILE_BYTES = 128 * 1024 * 1024
# A camera's padding, which every decoder forgives.
_HARMLESS = "extraneous bytes before marker"


class UnreadableImageError(Exception):
    """This file is no image that we decode."""


@dataclass(frozen=True)
class PixelOptions:
    """What every image becomes; sizes are pixels."""

    color_mode: ColorMode
    width: int
    height: int
    resize_mode: ResizeMode

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.color_mode.channels, self.height, self.width


def read_pixels(content: bytes, options: PixelOptions) -> np.ndarray:
    """uint8 [height, width] or, for colour, [height, width, RGB]; UnreadableImageError says why not."""
    try:
        image, extent = _decode_jpeg(content, options) if is_jpeg(content) else (_decode(content), None)
        return np.asarray(_in_mode(resize(image, options, extent), options.color_mode), np.uint8)
    except UnreadableImageError:
        raise
    # Decoders raise whatever they like on a file that lies.
    except Exception as error:
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


def is_jpeg(content: bytes) -> bool:
    """By its first bytes."""
    return content[:3] == b"\xff\xd8\xff"


def encode(pixels: np.ndarray, *, lossy: bool) -> tuple[bytes, str]:
    """A JPEG or PNG file of what `read_pixels` gave, and which of the two."""
    if lossy:
        if pixels.ndim == 2:
            gray = np.ascontiguousarray(pixels[:, :, None])
            return simplejpeg.encode_jpeg(gray, quality=95, colorspace="GRAY", colorsubsampling="Gray"), "jpeg"
        contiguous = np.ascontiguousarray(pixels)
        return simplejpeg.encode_jpeg(contiguous, quality=95, colorspace="RGB", colorsubsampling="420"), "jpeg"
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue(), "png"


def resize(image: Image.Image, options: PixelOptions, extent: tuple[float, float] | None = None) -> Image.Image:
    """Squash ignores the aspect ratio. The others keep it and centre: crop covers the frame, fill fits into it on
    black, half crop half fill takes the scale half way between.

    `extent` is how much of the image counts, from its upper left, when that is less than all of it.
    """
    if image.mode in ("P", "1"):
        # Indices and bits cannot be mixed.
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    frame = (options.width, options.height)
    width, height = extent or image.size
    if options.resize_mode is ResizeMode.SQUASH:
        return image.resize(frame, Image.Resampling.BILINEAR, box=(0, 0, width, height))
    scale = _scales((width, height), options)[0]
    # What overhangs is cut off before scaling: a sliver of an image must not become a picture of gigabytes.
    shown = (min(width, frame[0] / scale), min(height, frame[1] / scale))
    left, top = (width - shown[0]) / 2, (height - shown[1]) / 2
    size = (
        min(frame[0], max(1, round(shown[0] * scale))),
        min(frame[1], max(1, round(shown[1] * scale))),
    )
    scaled = image.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + shown[0], top + shown[1]))
    if size == frame:
        return scaled
    canvas = Image.new(image.mode, frame)
    canvas.paste(scaled, ((frame[0] - size[0]) // 2, (frame[1] - size[1]) // 2))
    return canvas


def _scales(size: tuple[float, float], options: PixelOptions) -> tuple[float, float]:
    """Of width and height."""
    scales = (options.width / size[0], options.height / size[1])
    match options.resize_mode:
        case ResizeMode.SQUASH:
            return scales
        case ResizeMode.CROP:
            scale = max(scales)
        case ResizeMode.FILL:
            scale = min(scales)
        case ResizeMode.HALF_CROP_HALF_FILL:
            scale = sum(scales) / 2
    return scale, scale


def _decode_jpeg(content: bytes, options: PixelOptions) -> tuple[Image.Image, tuple[float, float] | None]:
    """At the smallest size of the decoder's that is not smaller than what will be kept: it skips what would go.

    Its last row and column may be only a part of a pixel's worth; the extent says how much.
    """
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content, strict=False)
    if colorspace in ("CMYK", "YCCK"):
        return _decode(content), None
    require_pixels(width, height, MAX_JPEG_PIXELS)
    across, down = _scales((width, height), options)
    try:
        pixels = simplejpeg.decode_jpeg(
            content,
            "GRAY" if options.color_mode is ColorMode.GRAY else "RGB",
            min_width=min(width, math.ceil(width * across)),
            min_height=min(height, math.ceil(height * down)),
        )
    except ValueError as error:
        if _HARMLESS in str(error):
            return _decode(content), None
        raise
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    eighths = next(n for n in range(1, 9) if (-(-width * n // 8), -(-height * n // 8)) == image.size)
    return image, (width * eighths / 8, height * eighths / 8)


def _decode(content: bytes) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns of odd files that it can read.
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        require_pixels(*image.size, MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_OTHER_PIXELS)
        image.load()
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values to 255.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return image


def require_pixels(width: int, height: int, most: int) -> None:
    """UnreadableImageError when decoding so many pixels would take too much memory."""
    if width * height > most:
        raise UnreadableImageError(f"{width} x {height} pixels; at most {most} are decoded")


def _in_mode(image: Image.Image, color_mode: ColorMode) -> Image.Image:
    return image.convert("RGB" if color_mode is ColorMode.COLOR else "L")
