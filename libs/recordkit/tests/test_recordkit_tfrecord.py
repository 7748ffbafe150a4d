"""TFRecord files: round trips, damage, indexes that fit and that do not."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordkit.record_files import record_files
from recordkit.tfrecord import OVERHEAD_BYTES, CorruptRecordError, TFRecordFile, frame, index_file

RECORDS = [b"first", b"", b"x" * 300, b"last"]
FRAMED = [frame(record) for record in RECORDS]


def write(folder: Path, content: bytes = b"".join(FRAMED)) -> Path:
    path = folder / "train" / "train-00000-of-00001"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def write_index(path: Path, places: str) -> Path:
    index = index_file(path)
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_text(places)
    return index


def true_places() -> list[tuple[int, int]]:
    sizes = [len(framed) for framed in FRAMED]
    return [(sum(sizes[:number]), size) for number, size in enumerate(sizes)]


def test_records_come_back_in_any_order(tmp_path: Path) -> None:
    file = TFRecordFile(write(tmp_path))
    assert len(file) == 4
    assert list(file) == RECORDS
    assert [file[number] for number in (3, 0, 2, -1)] == [b"last", b"first", b"x" * 300, b"last"]
    assert file.offsets.tolist() == [offset for offset, _ in true_places()]
    assert all(len(framed) == len(record) + OVERHEAD_BYTES for framed, record in zip(FRAMED, RECORDS, strict=True))


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    path = write(tmp_path, b"")
    assert list(TFRecordFile(path)) == []
    write_index(path, "")
    assert list(TFRecordFile(path)) == []


def test_the_checksum_is_the_published_one() -> None:
    """CRC-32C of 32 zero bytes is 0x8a9136aa (RFC 3720, B.4); masked it is rotated by 15 and 0xa282ead8 is added."""
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert frame(bytes(32))[-4:] == masked.to_bytes(4, "little")


def test_an_index_saves_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    write_index(path, "".join(f"{offset} {size}\n" for offset, size in true_places()))
    monkeypatch.setattr("recordkit.tfrecord._scan", lambda *_: pytest.fail("the file was walked"))
    assert list(TFRecordFile(path)) == RECORDS


def test_an_index_older_than_its_file_is_not_asked(tmp_path: Path) -> None:
    path = write(tmp_path)
    index = write_index(path, "".join(f"{offset} {size}\n" for offset, size in true_places()))
    # As long as before, so the old places would seem to fit.
    path.write_bytes(b"".join(reversed(FRAMED)))
    os.utime(index, ns=(0, path.stat().st_mtime_ns - 1))
    assert list(TFRecordFile(path)) == RECORDS[::-1]


TOTAL = sum(map(len, FRAMED))


@pytest.mark.parametrize(
    "places",
    [
        "",
        "what is this\n",
        "0\n5\n",
        f"0 {TOTAL} 7\n",
        "0 21\n37 316\n353 20\n",
        f"0 {TOTAL - 20}\n{TOTAL - 21} 21\n",
        f"-1 {TOTAL + 1}\n",
        f"1.5 {TOTAL}\n",
        "1e30 1e30\n",
        f"18446744073709551615 {TOTAL + 1}\n",
        "0 99999999999999999999999999\n",
        "0 nan\n",
        "\x00\x01\x02",
    ],
)
def test_an_index_that_does_not_fit_is_not_believed(tmp_path: Path, places: str) -> None:
    path = write(tmp_path)
    write_index(path, places)
    assert list(TFRecordFile(path)) == RECORDS


def test_an_index_of_other_records_gives_errors_and_no_wrong_record(tmp_path: Path) -> None:
    path = write(tmp_path)
    write_index(path, f"0 10\n10 {TOTAL - 10}\n")
    file = TFRecordFile(path)
    assert file[0] == b"first"
    with pytest.raises(CorruptRecordError, match=f"{path.name}: is damaged at byte 10"):
        file[1]


def test_damage_is_named_by_file_and_byte(tmp_path: Path) -> None:
    content = bytearray(b"".join(FRAMED))
    start = len(FRAMED[0]) + len(FRAMED[1])
    content[start + 20] ^= 1
    file = TFRecordFile(write(tmp_path, bytes(content)))
    assert file[1] == b""
    with pytest.raises(CorruptRecordError, match=f"train-00000-of-00001: the record at byte {start} does not match"):
        file[2]


@pytest.mark.parametrize("cut", [1, 4, 7, 21, 40])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    with pytest.raises(CorruptRecordError, match=r"train-00000-of-00001.*(cut short|damaged at byte \d+)"):
        TFRecordFile(write(tmp_path, b"".join(FRAMED)[:-cut]))


def test_a_huge_length_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    length = (2**63).to_bytes(8, "little")
    # A header whose own checksum is right.
    header = length + frame(length)[-4:]
    with pytest.raises(CorruptRecordError, match="the record at byte 21 is cut short"):
        TFRecordFile(write(tmp_path, FRAMED[0] + header + b"x" * 100))


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_compressed_files_are_refused_as_such(tmp_path: Path, compress) -> None:
    with pytest.raises(CorruptRecordError, match="compressed TFRecords cannot be read in any order"):
        TFRecordFile(write(tmp_path, compress(b"".join(FRAMED))))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptRecordError, match="is no TFRecord file"):
        TFRecordFile(write(tmp_path, b"\x89PNG\r\n\x1a\n" + bytes(100)))
    with pytest.raises(FileNotFoundError):
        TFRecordFile(tmp_path / "nothing")


@given(st.data())
def test_all_damage_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = b"".join(FRAMED)
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.unlink(missing_ok=True)  # a mapped file keeps its bytes
    path.write_bytes(content)
    if content == whole:
        assert list(TFRecordFile(path)) == RECORDS
    else:
        with pytest.raises(CorruptRecordError, match=re.escape(str(path))):
            list(TFRecordFile(path))


@given(st.binary(min_size=1, max_size=200))
def test_any_other_file_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    # Nobody guesses eight checksums.
    with pytest.raises(CorruptRecordError, match=re.escape(str(path))):
        list(TFRecordFile(path))


def test_offsets_hold_eight_bytes_a_record(tmp_path: Path) -> None:
    assert TFRecordFile(write(tmp_path, FRAMED[1] * 1000)).offsets.dtype == np.uint64


def test_record_files_are_known_by_name(tmp_path: Path) -> None:
    names = ["b.tfrecord", "a.tfrecords", "c.record", "train-00001-of-00002", "train-00000-of-00002"]
    for name in (*names, "labels.txt", "a.tfrecord.idx", ".hidden", "train-1-of-2"):
        (tmp_path / name).touch()
    (tmp_path / "folder.tfrecord").mkdir()
    assert [file.name for file in record_files(tmp_path)] == sorted(names)
    assert record_files(tmp_path / "labels.txt") == [tmp_path / "labels.txt"]
    assert record_files(tmp_path / "nothing") == []


def test_record_files_may_lie_in_class_folders(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.tfrecord").touch()
    assert record_files(tmp_path) == [tmp_path / "cat" / "x.tfrecord", tmp_path / "dog" / "x.tfrecord"]
