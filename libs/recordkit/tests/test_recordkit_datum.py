"""Datum as protobuf itself writes and reads it, and records that are none."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from recordkit.datum import Datum, encode_datum
from recordkit.lmdb_records import open_lmdb


def _datum_class() -> Any:
    """Caffe's message, from its published definition."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="recordkit_caffe.proto", package="caffe", syntax="proto2")
    message = file.message_type.add(name="Datum")
    for number, name, kind in (
        (1, "channels", kinds.TYPE_INT32),
        (2, "height", kinds.TYPE_INT32),
        (3, "width", kinds.TYPE_INT32),
        (4, "data", kinds.TYPE_BYTES),
        (5, "label", kinds.TYPE_INT32),
        (6, "float_data", kinds.TYPE_FLOAT),
        (7, "encoded", kinds.TYPE_BOOL),
    ):
        label = kinds.LABEL_REPEATED if name == "float_data" else kinds.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Datum"))


CAFFE_DATUM = _datum_class()
INT32 = st.integers(-(2**31), 2**31 - 1)
FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=5)


@given(
    channels=st.sampled_from([1, 3]), height=st.integers(1, 20), width=st.integers(1, 20), label=INT32, vector=FLOATS
)
def test_protobuf_reads_what_we_write(channels: int, height: int, width: int, label: int, vector: list[float]) -> None:
    pixels = np.random.default_rng(height * width).integers(0, 256, (channels, height, width), np.uint8)
    record = encode_datum(pixels, label, vector)
    caffe = CAFFE_DATUM.FromString(record)
    assert (caffe.channels, caffe.height, caffe.width, caffe.label) == (channels, height, width, label)
    assert caffe.data == pixels.tobytes()
    assert list(caffe.float_data) == vector
    assert not caffe.encoded
    ours = Datum.parse(record)
    assert ours == Datum(channels, height, width, memoryview(pixels.tobytes()), label, vector=tuple(vector))
    stored = np.asarray(ours.image())
    assert np.array_equal(stored, pixels[0] if channels == 1 else pixels[::-1].transpose(1, 2, 0))


@given(
    channels=INT32,
    height=INT32,
    width=INT32,
    label=INT32,
    data=st.binary(max_size=300),
    vector=FLOATS,
    encoded=st.booleans(),
)
def test_we_read_what_protobuf_writes(
    channels: int, height: int, width: int, label: int, data: bytes, vector: list[float], encoded: bool
) -> None:
    caffe = CAFFE_DATUM(
        channels=channels, height=height, width=width, data=data, label=label, float_data=vector, encoded=encoded
    )
    expected = Datum(channels, height, width, memoryview(data), label, encoded, tuple(vector))
    assert Datum.parse(caffe.SerializeToString()) == expected
    assert Datum.parse(memoryview(caffe.SerializeToString())) == expected


def test_encoded_images_are_decoded() -> None:
    picture, file = Image.new("RGB", (5, 4), (10, 20, 30)), io.BytesIO()
    picture.save(file, "PNG")
    datum = Datum.parse(CAFFE_DATUM(data=file.getvalue(), encoded=True).SerializeToString())
    assert datum.image().tobytes() == picture.tobytes()
    with pytest.raises(ValueError, match="not an image"):
        Datum.parse(CAFFE_DATUM(data=file.getvalue()[:40], encoded=True).SerializeToString()).image()


def test_packed_floats_and_unknown_fields_are_read() -> None:
    packed = b"\x32\x08" + np.array([1, 2], "<f4").tobytes()
    assert Datum.parse(packed).vector == (1.0, 2.0)
    assert Datum.parse(b"\x78\x05\x28\x07\x7a\x01x\x79" + bytes(8)).label == 7


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (b"\x08", "cut short"),
        (b"\x22\x05ab", "cut short"),
        (b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "cut short"),
        (b"\x35\x00\x00", "cut short"),
        (b"\x08" + b"\xff" * 12, "cut short"),
        (b"\x20\x05", "field 4 has wire type 0"),
        (b"\x0a\x0212", "field 1 has wire type 2"),
        (b"\x2d1234", "field 5 has wire type 5"),
        (b"\x3112345678", "field 6 has wire type 1"),
        (b"\x30\x01", "field 6 has wire type 0"),
        (b"\x32\x03abc", "3 bytes of float_data"),
        (b"\x0b\x01", "field 1 has wire type 3"),
        (b"\x00\x01", "field 0"),
    ],
)
def test_what_is_no_datum_is_refused(record: bytes, what: str) -> None:
    for kind in (bytes, memoryview):
        with pytest.raises(ValueError, match=f"not a Datum record: .*{what}"):
            Datum.parse(kind(record))


@pytest.mark.parametrize("size", [(2, 2, 2), (1, -2, -4), (-1, 2, 4), (3, 1, 2), (1, 0, 0), (1, 2**31 - 1, 2**31 - 1)])
def test_pixels_that_do_not_fit_are_no_image(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="8 bytes are no image"):
        Datum(*size, bytes(8), 0).image()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_datum_or_a_value_error(record: bytes) -> None:
    with contextlib.suppress(ValueError):
        Datum.parse(record).image()


@given(st.data())
def test_a_damaged_datum_is_a_datum_or_a_value_error(data: st.DataObject) -> None:
    record = bytearray(encode_datum(np.zeros((1, 3, 4), np.uint8), 300, [1.0, 2.0]))
    for _ in range(data.draw(st.integers(1, 4))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        Datum.parse(bytes(record[: data.draw(st.integers(0, len(record)))])).image()


def test_plain_lmdb_reads_records_and_we_leave_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    with lmdb.open(str(folder), map_size=1 << 22, lock=False) as environment, environment.begin(write=True) as writing:
        for number in range(10):
            writing.put(b"%08d" % number, encode_datum(np.full((1, 2, 2), number, np.uint8), number))
    with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as transaction:
        plain = [CAFFE_DATUM.FromString(value) for _, value in transaction.cursor()]
    assert [(datum.label, datum.data) for datum in plain] == [(number, bytes([number] * 4)) for number in range(10)]
    for path in (folder, folder / "data.mdb"):
        with open_lmdb(path).begin(buffers=True) as transaction, transaction.cursor() as cursor:
            ours = [(bytes(key), Datum.parse(value).label) for key, value in cursor]
        assert ours == [(b"%08d" % number, number) for number in range(10)]
    assert open_lmdb(folder) is open_lmdb(folder / ".." / "train" / "data.mdb")
    assert [file.name for file in folder.iterdir()] == ["data.mdb"]


def test_what_is_no_lmdb_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(lmdb.Error):
        open_lmdb(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"x" * 10_000)
    with pytest.raises(lmdb.Error):
        open_lmdb(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["data.mdb"]
