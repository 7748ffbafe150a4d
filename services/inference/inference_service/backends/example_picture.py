"""`python -m inference_service.backends.example_picture FOLDER HOME BYTES`: the first picture of a split's records.

What reads records of users trusts them, LMDB above all: before it does the process gives up all writing, all memory but
some, and all of the platform's HOME but the FOLDER. It writes no more than so many BYTES: a line of JSON, the form of
the records (null when there are none; `backends.program_records`), and a PNG.
"""

from __future__ import annotations

import io
import json
import resource
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from workerkit.confinement import hiding

GREY_SIDE = 64
# It becomes a part of a model's configuration.
MAX_SIDE = 256
# Files that are mapped do not count.
MEMORY_BYTES = 1024**3


def example_picture(folder: str) -> tuple[dict[str, Any] | None, bytes]:
    """Form and picture; a grey one when the folder has no pictures, or none is named."""
    kind, image = _first(Path(folder)) if folder else ("", None)
    form = None
    if image is not None:
        form = {"kind": kind, "channels": len(image.getbands()), "height": image.height, "width": image.width}
    image = image or Image.new("RGB", (GREY_SIDE, GREY_SIDE), (127, 127, 127))
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    content = io.BytesIO()
    image.save(content, "PNG")
    return form, content.getvalue()


def _first(folder: Path) -> tuple[str, Image.Image | None]:
    from recordkit.datum import Datum
    from recordkit.example import ImageExample
    from recordkit.lmdb_records import open_lmdb
    from recordkit.record_files import record_files
    from recordkit.tfrecord import TFRecordFile

    if (folder / "data.mdb").is_file():
        with open_lmdb(folder).begin() as transaction, transaction.cursor() as cursor:
            for record in cursor.iternext(keys=False, values=True):
                return "lmdb", Datum.parse(record).image()
    for file in record_files(folder):
        for record in TFRecordFile(file):
            return "tfrecords", ImageExample.parse(record).image()
    return "", None


def confine(folder: Path, home: Path, file_bytes: int) -> None:
    """Keep this process to the folder; OSError when the kernel refuses."""
    limits = {resource.RLIMIT_DATA: MEMORY_BYTES, resource.RLIMIT_FSIZE: file_bytes, resource.RLIMIT_CORE: 0}
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))
    hiding.hide(home, [], [folder], changes_nothing_else=True, shared=())


if __name__ == "__main__":
    if sys.argv[1]:
        confine(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    found, picture = example_picture(sys.argv[1])
    sys.stdout.buffer.write(json.dumps(found).encode() + b"\n" + picture)
