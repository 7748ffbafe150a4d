"""Decodes one image of the most pixels that its format may have, to the largest record; prints its peak in bytes."""

import resource
import sys
from pathlib import Path

from datasets_service.domain.words import ColorMode, ResizeMode
from datasets_service.images.pixels import PixelOptions, read_pixels

if __name__ == "__main__":
    read_pixels(Path(sys.argv[1]).read_bytes(), PixelOptions(ColorMode.COLOR, 4096, 4096, ResizeMode.SQUASH))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
