"""Every record of TFRecord files."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dlmesh.datasets.v1 import records_pb2
from google.protobuf.message import DecodeError
from recordkit.record_files import record_files
from recordkit.tfrecord import OVERHEAD_BYTES, TFRecordFile

from datasets_service.importers.base import ImportRefusedError
from datasets_service.registered.scan import Scan

LABELS = ("image/class/label", "label")
TEXTS = ("image/class/text",)
MAX_TEXT_BYTES = 1000


def scan_tfrecords(roots: Sequence[Path], path: Path) -> Iterator[int | Scan]:
    """Checks every checksum; counts tf.train.Example records by label, others as unlabelled."""
    found = Scan()
    for file in record_files(path):
        if not any(file.resolve().is_relative_to(root) for root in roots):
            raise ImportRefusedError(f"{file} is a link that leaves the data roots")
        records = TFRecordFile(file)
        found.digest.update(f"{file.relative_to(path) if path.is_dir() else file.name} {len(records)}\n".encode())
        for record in records:
            found.records += 1
            found.digest.update(b"%d\n" % len(record))
            found.digest.update(record)
            _add(found, record)
            yield len(record) + OVERHEAD_BYTES
    if not found.records:
        raise ImportRefusedError(f"{path} has no records")
    yield found


def scanner(roots: Sequence[Path]) -> functools.partial[Iterator[int | Scan]]:
    """Confined to the data roots."""
    return functools.partial(scan_tfrecords, roots)


def _add(found: Scan, record: bytes) -> None:
    try:
        feature = records_pb2.Example.FromString(record).features.feature
    except DecodeError:
        found.unlabelled += 1
        return
    found.add_image(*(_number(feature, f"image/{name}") or 0 for name in ("width", "height", "channels")))
    label = next((number for name in LABELS if (number := _number(feature, name)) is not None), None)
    if label is None:
        found.unlabelled += 1
        return
    found.labels[label] += 1
    for name in TEXTS:
        if label not in found.texts and name in feature and any(values := feature[name].bytes_list.value):
            found.texts[label] = values[0][:MAX_TEXT_BYTES].decode(errors="replace")


def _number(feature: Mapping[str, records_pb2.Feature], name: str) -> int | None:
    # Asking a protobuf map for what it lacks would add it.
    values = feature[name].int64_list.value if name in feature else ()
    return next(map(int, values), None)
