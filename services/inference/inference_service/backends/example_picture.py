"""`python -m inference_service.backends.example_picture FOLDER`: the first picture of a split's records, as a PNG."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

GREY_SIDE = 64
# It becomes a part of a model's configuration.
MAX_SIDE = 256


def example_picture(folder: str) -> bytes:
    """Encoded; a grey one when the folder has no pictures, or none is named."""
    image = _first(Path(folder)) if folder else None
    image = image or Image.new("RGB", (GREY_SIDE, GREY_SIDE), (127, 127, 127))
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _first(folder: Path) -> Image.Image | None:
    from recordkit.datum import Datum
    from recordkit.example import ImageExample
    from recordkit.lmdb_records import open_lmdb
    from recordkit.record_files import record_files
    from recordkit.tfrecord import TFRecordFile

    if (folder / "data.mdb").is_file():
        with open_lmdb(folder).begin() as transaction, transaction.cursor() as cursor:
            for record in cursor.iternext(keys=False, values=True):
                return Datum.parse(record).image()
    for file in record_files(folder):
        for record in TFRecordFile(file):
            return ImageExample.parse(record).image()
    return None


if __name__ == "__main__":
    sys.stdout.buffer.write(example_picture(sys.argv[1]))
