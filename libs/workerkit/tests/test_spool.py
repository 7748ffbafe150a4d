"""A spool of any size is read in pieces of a bounded one, from where its delivery was acknowledged."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from workerkit.spool import (
    BATCH_BYTES,
    BATCH_LINES,
    BATCH_POINTS,
    MAX_LINE_BYTES,
    MAX_SERIES,
    acknowledged,
    append_metrics,
    read_metrics,
)


def line(values: Mapping[str, float], step: int) -> str:
    return json.dumps({"step": step, "time": 0, "values": values}, separators=(",", ":")) + "\n"


def test_a_batch_ends_with_the_line_that_fills_it(tmp_path: Path) -> None:
    values = {f"s{number}": 1.0 for number in range(900)}
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(line(values, step) for step in range(30))
    sizes, offset, more = [], 0, True
    while more:
        points, end = read_metrics(tmp_path, offset)
        more, offset = end > offset, end
        sizes.append(len(points))
    assert sizes == [10_800, 10_800, 5400, 0]
    assert BATCH_POINTS <= sizes[0] < BATCH_POINTS + MAX_SERIES


def test_of_a_line_with_too_many_points_the_first_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    many = {f"{number:x}": 1 for number in range(80_000)}
    text = line(many, 1)
    assert len(text) < MAX_LINE_BYTES
    (tmp_path / "metrics.jsonl").write_text(text * 4 + line({"loss": 0.5}, 2))
    points, offset = read_metrics(tmp_path, 0)
    assert len(points) == 4 * MAX_SERIES + 1
    assert (points[-1].series, points[-1].step) == ("loss", 2)
    assert offset == (tmp_path / "metrics.jsonl").stat().st_size
    read_metrics(tmp_path, 0)
    assert len(caplog.records) == 1
    assert str(tmp_path) in caplog.text


def test_lines_without_points_fill_a_batch_too(tmp_path: Path) -> None:
    junk = "x" * (MAX_LINE_BYTES - 1) + "\n"
    (tmp_path / "metrics.jsonl").write_text(junk * 20)
    assert read_metrics(tmp_path, 0) == ([], BATCH_BYTES)
    (tmp_path / "metrics.jsonl").write_text("\n" * 1000)
    assert read_metrics(tmp_path, 0) == ([], BATCH_LINES)


def test_what_was_acknowledged_ends_a_line(tmp_path: Path) -> None:
    assert acknowledged(tmp_path) == 0
    (tmp_path / "metrics.offset").write_text("5")
    assert acknowledged(tmp_path) == 0
    append_metrics(tmp_path, {"loss": 1.0}, 1)
    end = (tmp_path / "metrics.jsonl").stat().st_size
    append_metrics(tmp_path, {"loss": 1.0}, 2)
    for text, offset in (
        (str(end), end),
        (f"{end}\n", end),
        ("0", 0),
        (str(end - 1), 0),
        (str(end + 1), 0),
        (str(10 * end), 0),
        (str(-end), 0),
        ("9" * 19, 0),
        ("9" * 5000, 0),
        ("", 0),
        ("\0", 0),
        ("many", 0),
    ):
        (tmp_path / "metrics.offset").write_text(text)
        assert acknowledged(tmp_path) == offset, text
    (tmp_path / "metrics.offset").unlink()
    os.mkfifo(tmp_path / "metrics.offset")
    assert acknowledged(tmp_path) == 0
