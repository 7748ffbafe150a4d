"""An image file as the pixels of a record."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from datasets_service.domain.words import ColorMode, ResizeMode

# Formats that Pillow decodes itself; others (EPS) would start programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
MAX_IMAGE_PIXELS = 64 * 1024 * 1024


class UnreadableImageError(Exception):
    """This file is no image that we decode."""


@dataclass(frozen=True)
class PixelOptions:
    """What every image becomes; sizes are pixels."""

    color_mode: ColorMode
    width: int
    height: int
    resize_mode: ResizeMode


def read_pixels(path: str, options: PixelOptions) -> np.ndarray:
    """uint8 [channels, height, width], BGR when there are three channels; UnreadableImageError says why not."""
    Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        # Pillow only warns up to twice the limit.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=FORMATS) as image:
                resized = resize(_in_mode(image, options.color_mode), options)
        # Decoders raise whatever they like on a file that lies.
        except Exception as error:
            raise UnreadableImageError(f"{type(error).__name__}: {error}") from error
    pixels = np.asarray(resized, np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1))


def resize(image: Image.Image, options: PixelOptions) -> Image.Image:
    """Squash ignores the aspect ratio. The others keep it and centre: crop covers the frame, fill fits into it on
    black, half crop half fill takes the scale half way between."""
    frame = (options.width, options.height)
    if options.resize_mode is ResizeMode.SQUASH:
        return image.resize(frame, Image.Resampling.BILINEAR)
    scales = (frame[0] / image.width, frame[1] / image.height)
    scale = {
        ResizeMode.CROP: max(scales),
        ResizeMode.FILL: min(scales),
        ResizeMode.HALF_CROP_HALF_FILL: sum(scales) / 2,
    }[options.resize_mode]
    # What overhangs is cut off before scaling: a sliver of an image must not become a picture of gigabytes.
    shown = (min(image.width, frame[0] / scale), min(image.height, frame[1] / scale))
    left, top = (image.width - shown[0]) / 2, (image.height - shown[1]) / 2
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


def _in_mode(image: Image.Image, color_mode: ColorMode) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values to 255.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB" if color_mode is ColorMode.COLOR else "L")
