"""Pictures as the records of a split, for programs that read nothing else. Copied into the model repository.

Used only where `recordkit` is, in the process of the program.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORD_FILE = "data-00000-of-00001"


def to_records(folder: Path, form: Mapping[str, Any]) -> None:
    """Replace the pictures of a folder by records that are called as they are, in their order; labels are 0.

    `form` is `{"kind": "lmdb" | "tfrecords", "channels", "height", "width"}` of the dataset.
    """
    from PIL import Image

    size, mode = (form["width"], form["height"]), "L" if form["channels"] == 1 else "RGB"
    pictures: dict[str, Image.Image] = {}
    for file in sorted(folder.iterdir()):
        with Image.open(file) as opened:
            image = opened.convert(mode)
        pictures[file.name] = image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
        file.unlink()
    {"lmdb": _write_lmdb, "tfrecords": _write_tfrecords}[form["kind"]](folder, pictures)


def _write_lmdb(folder: Path, pictures: Mapping[str, Any]) -> None:
    import lmdb
    import numpy as np
    from recordkit.datum import encode_datum

    largest = sum(image.width * image.height * 3 + 4096 for image in pictures.values())
    with lmdb.open(str(folder), map_size=max(1 << 20, 2 * largest)) as environment:
        with environment.begin(write=True) as transaction:
            for name, image in pictures.items():
                pixels = np.asarray(image)
                # Blue first, as in Caffe.
                planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)[::-1]
                transaction.put(name.encode(), encode_datum(np.ascontiguousarray(planes), 0))


def _write_tfrecords(folder: Path, pictures: Mapping[str, Any]) -> None:
    from recordkit.example import ImageExample
    from recordkit.tfrecord import frame

    with (folder / RECORD_FILE).open("wb") as file:
        for name, image in pictures.items():
            content = io.BytesIO()
            image.save(content, "PNG")
            channels = len(image.getbands())
            example = ImageExample(content.getvalue(), "png", image.height, image.width, channels, 0, "", name)
            file.write(frame(example.serialize()))
