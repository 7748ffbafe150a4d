"""Tables come back cell by cell, however they are written; what becomes of cells is what the training rows said."""

from __future__ import annotations

import csv
import json
import math
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dlmesh_sdk import table_prediction
from dlmesh_sdk.table_datasets import (
    FURTHEST,
    MAX_LABELS,
    MAX_VALUES,
    UNKNOWN,
    Table,
    TableDataset,
    TableEncoding,
    Target,
)

BOM = b"\xef\xbb\xbf"


def table_of(folder: Path, text: str | bytes, name: str = "rows.csv") -> Table:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return Table(folder / name)


def inputs_of(rows: TableDataset, index: int) -> tuple[list[float], list[int]]:
    (numbers, texts), _ = rows[index]
    assert (numbers.dtype, texts.dtype) == (torch.float32, torch.int64)
    return numbers.tolist(), texts.tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a,b\n1,x\n2,y\n", [["1", "x"], ["2", "y"]]),
        ("a,b\n1,x\n2,y", [["1", "x"], ["2", "y"]]),
        ("a,b\r\n1,x\r\n2,\r\n", [["1", "x"], ["2", ""]]),
        ("a,b\n,\n", [["", ""]]),
        ("\n\r\na,b\n\n1,x\n\r\n\n2,y\n\n", [["1", "x"], ["2", "y"]]),
        ('a,b\n"1","x, y"\n2,"he said ""no"""\n', [["1", "x, y"], ["2", 'he said "no"']]),
        ('a,b\n1,"two\nlines\r\n\nof"\n2,""\n', [["1", "two\nlines\r\n\nof"], ["2", ""]]),
        ('a,b\n1,"ends with\n"\n', [["1", "ends with\n"]]),
        (BOM + "a,b\n1,größer\n".encode(), [["1", "größer"]]),
        ("a,b\n1,\u2028\x0b\x1c \n", [["1", "\u2028\x0b\x1c "]]),
        ("a\n \n\n0\n", [[" "], ["0"]]),
    ],
)
def test_rows_are_those_of_the_file(tmp_path: Path, text: str | bytes, rows: list[list[str]]) -> None:
    table = table_of(tmp_path, text)
    assert list(table) == rows
    assert [column.name for column in table.columns] == ["a", "b"][: len(rows[0])]
    assert len(table) == len(rows)
    assert table.names() == [str(number) for number in range(len(rows))]
    assert table[-1] == rows[-1]
    assert list(pickle.loads(pickle.dumps(table))) == rows
    with pytest.raises(IndexError):
        table[len(rows)]


def test_any_cells_are_read_as_the_csv_module_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Quotes and line ends fall on both sides of every boundary.
    monkeypatch.setattr("dlmesh_sdk.table_datasets._CHUNK_BYTES", 7)
    dice = random.Random(7)
    rows = [["".join(dice.choices('a,"\n\r é', k=dice.randint(0, 6))) for _ in range(3)] for _ in range(300)]
    with (tmp_path / "any.csv").open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([["a", "b", "c"], *rows])
    assert list(Table(tmp_path / "any.csv")) == rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "empty"),
        (BOM, "empty"),
        (b"\n\n", "empty"),
        (b"a,b\n", "no rows"),
        (b"a,b,a\n1,2,3\n", "same name: a, a, b"),
        (b"a,b\n1,2\n3\n", "rows.csv, row 1: 1 cells, the header has 2"),
        (b'a,b\n1,2\n3,"4\n', "a quoted cell does not end"),
        (b'a,b\n1,"2"3\n', "rows.csv, row 0: "),
        (b"a,b\n1,2\n3,\xff\n", "rows.csv, row 1: not UTF-8"),
    ],
)
def test_what_is_no_table_says_where(tmp_path: Path, text: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        table_of(tmp_path, text)


def test_a_path_without_a_table_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(ValueError, match="no CSV file and no split of a CSV dataset"):
            Table(path)


def test_types_are_those_of_the_import(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    table_of(tmp_path / "train", "number,code\n1,2\n", "data.csv")
    described = [{"name": "number", "type": "number"}, {"name": "code", "type": "text"}]
    for content, found in (
        (json.dumps(described), [True, False]),
        (json.dumps(described[:1]), [True, True]),
        ("{", [True, True]),
    ):
        (tmp_path / "columns.json").write_text(content)
        assert [column.is_number for column in Table(tmp_path / "train").columns] == found
        assert [column.is_number for column in Table(tmp_path / "train" / "data.csv").columns] == found


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    table = table_of(tmp_path, "a,b\n1,2\n")
    assert table.position("b") == 1
    with pytest.raises(ValueError, match=r"no column 'c'; its columns are 'a', 'b'"):
        table.position("c")


def test_numbers_are_standardised_and_gaps_are_marked(tmp_path: Path) -> None:
    table = table_of(tmp_path, "n,all,same,y\n1,,7,a\n3,,7,b\n,,7,a\n")
    encoding = TableEncoding.fit(table)
    assert encoding.numbers == (("n", 2.0, 1.0), ("all", 0.0, 1.0), ("same", 7.0, 1.0))
    rows = encoding.rows(table)
    assert [inputs_of(rows, number)[0] for number in range(3)] == [
        [-1, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1, 0],
    ]
    assert [rows[number][1] for number in range(3)] == [0, 1, 0]
    other = encoding.rows(table_of(tmp_path, "same,y,n,all\n8,?,1e300,5\n", "other.csv"), has_target=False)
    (numbers, _), target = other[0]
    assert (numbers.tolist(), target) == ([FURTHEST, 5, 1, 0, 0, 0], -1)
    inputs, targets = rows.collate([rows[0], rows[2]])
    assert [tuple(part.shape) for part in inputs] == [(2, 6), (2, 0)]
    assert targets.tolist() == [0, 0]


def test_moments_of_pieces_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmesh_sdk.table_datasets._CHUNK_ROWS", 3)
    values = np.random.default_rng(2).normal(1e9, size=100).tolist()
    table = table_of(tmp_path, "x,y\n" + "".join(f"{value!r},{index % 2}\n" for index, value in enumerate(values)))
    ((_, mean, deviation),) = TableEncoding.fit(table).numbers
    assert mean == pytest.approx(np.mean(values), rel=1e-12)
    assert deviation == pytest.approx(np.std(values), rel=1e-6)


def test_numbers_near_the_largest_are_numbers(tmp_path: Path) -> None:
    table = table_of(tmp_path, "x,y\n1e308,-1.7e308\n-1e308,1.7e308\n1.7e308,0\n0,5\n-1.7e308,0.5\n")
    encoding = TableEncoding.fit(table, kind="regression")
    (_, mean, deviation), target = encoding.numbers[0], encoding.target
    assert all(map(math.isfinite, (mean, deviation, target.mean, target.deviation)))
    assert deviation == pytest.approx(1.2474e308, rel=1e-3)
    for number, ((numbers, _), standard) in enumerate(encoding.rows(table)[index] for index in range(5)):
        assert numbers.abs().max() < 2
        assert standard.item() * target.deviation == pytest.approx(float(table[number][1]), rel=1e-6, abs=1e303)
    one = TableEncoding.fit(table_of(tmp_path, "x,y\n0.1,0.1\n0.1,0.2\n0.1,0.4\n"), kind="regression")
    # Rounding is no deviation.
    assert one.numbers == (("x", pytest.approx(0.1), 1.0),)
    _, standard = one.rows(table_of(tmp_path, "x,y\n0,1e308\n"))[0]
    assert standard.square().isfinite()


def test_texts_that_were_not_seen_are_one(tmp_path: Path) -> None:
    long = "l" * 201
    cells = ["b", "a", "b", "once", "a", "b", "", "", long, long]
    encoding = TableEncoding.fit(table_of(tmp_path, "t,y\n" + "".join(f"{cell},{len(cell) % 2}\n" for cell in cells)))
    # The most frequent first, by name where equally many; an empty cell is a text like others.
    assert encoding.texts == (("t", ("b", "", "a")),)
    assert encoding.shape == {"numbers": 0, "texts": [3], "outputs": 2}
    rows = encoding.rows(table_of(tmp_path, "t,y\nb,1\n,1\na,1\nonce,1\nB,1\nnew,1\n"))
    assert [inputs_of(rows, number)[1] for number in range(6)] == [[1], [2], [3], [0], [0], [0]]


def test_the_most_frequent_texts_are_known(tmp_path: Path) -> None:
    cells = [f"t{number}" for number in range(MAX_VALUES + 50) for _ in range(3 if number % 2 else 2)]
    encoding = TableEncoding.fit(table_of(tmp_path, "t,y\n" + "".join(f"{cell},{len(cell) % 2}\n" for cell in cells)))
    known = encoding.texts[0][1]
    assert len(known) == MAX_VALUES
    assert all(int(name[1:]) % 2 for name in known[: (MAX_VALUES + 50) // 2])


@pytest.mark.parametrize(
    ("cells", "kind", "labels"),
    [
        (["3", "1.0", "3.0", "-2"], "", ("-2", "1", "3")),
        (["b", "a", "b"], "", ("a", "b")),
        (["0.5", "1", "0.5"], "", ()),
        (["0.5", "1", "5e-1"], "classification", ("0.5", "1")),
        (["1", "2", "1"], "regression", ()),
        ([str(number) for number in range(20)], "", tuple(map(str, range(20)))),
        ([str(number) for number in range(21)], "", ()),
        ([str(number % 25) for number in range(99)], "classification", tuple(map(str, range(25)))),
        (["9007199254740993", "9007199254740992"], "", ("9007199254740992", "9007199254740993")),
    ],
)
def test_what_is_predicted(tmp_path: Path, cells: list[str], kind: str, labels: tuple[str, ...]) -> None:
    table = table_of(tmp_path, "y,x\n" + "".join(f"{cell},1\n" for cell in cells))
    target = Target.fit(table, "y", kind)
    assert target.labels == labels
    assert TableEncoding.fit(table, "y", kind).target == target
    indices = {label: index for index, label in enumerate(labels)}
    for cell, value in zip(cells, target.truth(table), strict=True):
        encoded = target.encode(cell, indices)
        if labels:
            assert labels[int(encoded)] == value
        else:
            assert value == float(cell)
            assert float(encoded) * target.deviation + target.mean == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "target", "kind", "words"),
    [
        ("x,y\n1,a\n2,\n", "", "", "rows.csv, row 1: column 'y', which is to be predicted, is empty"),
        ("x,y\n1,a\n2,b\n", "z", "", "no column 'z'"),
        ("x,y\n1,a\n2,b\n", "", "sorting", "kind is 'sorting'; allowed: classification, regression"),
        ("x,y\n1,a\n2,b\n", "", "regression", "column 'y' holds text"),
        ("x,y\n1,a\n2,a\n", "", "", "column 'y' is 'a' in every row"),
        ("y\n1\n2\n", "", "", "no column but 'y'"),
        ("x,y\n" + "".join(f"1,{n}a\n" for n in range(30)), "", "", "30 different values in 30 rows"),
        (
            "x,y\n" + "".join(f"1,{n // 2}a\n" for n in range(2 * MAX_LABELS + 20)),
            "",
            "",
            "more than 10000 different values",
        ),
    ],
)
def test_what_cannot_be_learned_says_why(tmp_path: Path, text: str, target: str, kind: str, words: str) -> None:
    table = table_of(tmp_path, text)
    with pytest.raises(ValueError, match=words):
        TableEncoding.fit(table, target, kind)


def test_labels_of_test_rows_alone_cannot_be_met_and_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(tmp_path, "n,y\n1,a\n2,b\n3,a\n")
    table_of(tmp_path, "n,y\n1,a\n2,new\n", "test.csv")
    monkeypatch.setattr(table_prediction.parameters, "getTestData", lambda: str(tmp_path / "test.csv"))
    encoding = TableEncoding.fit(table)
    task = table_prediction.prediction_task(table, encoding, lambda **_: torch.nn.Identity())
    _, targets = task.collate([task.test_data[0], task.test_data[1]])
    assert targets.tolist() == [0, UNKNOWN]
    outputs = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    assert float(task.loss(outputs, targets)) == pytest.approx(math.log(1 + math.exp(-3)))
    assert float(task.metrics["accuracy"](outputs, targets)) == 0.5
    assert float(task.loss(outputs[1:], targets[1:])) == 0
    # What is learned from has to be known, as it may not be with the encoding of other rows' weights.
    with pytest.raises(ValueError, match=r"test\.csv, row 1: column 'y': label 'new' is not known"):
        encoding.rows(Table(tmp_path / "test.csv"))[1]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("word,t,1", "column 'n': 'word' is no finite number"),
        ("inf,t,1", "column 'n': 'inf' is no finite number"),
        ("nan,t,1", "column 'n': 'nan' is no finite number"),
        ("1e999,t,1", "column 'n': '1e999' is no finite number"),
        ("1_0,t,1", "column 'n': '1_0' is no finite number"),
        ("1,t,", "column 'y', which is to be predicted, is empty"),
        ("1,t,word", "column 'y': 'word' is no finite number"),
        ("1,t,7", "column 'y': label '7' is not known from training rows"),
    ],
)
def test_a_wrong_cell_is_named_with_file_row_and_column(tmp_path: Path, row: str, words: str) -> None:
    encoding = TableEncoding.fit(table_of(tmp_path, "n,t,y\n1,t,0\n2,t,1\n"))
    rows = encoding.rows(table_of(tmp_path, f"n,t,y\n1,t,0\n{row}\n", "other.csv"))
    rows[0]
    with pytest.raises(ValueError, match=f"other.csv, row 1: {words}"):
        rows[1]
    if "is to be predicted" in words:
        with pytest.raises(ValueError, match=f"other.csv, row 1: {words}"):
            encoding.target.truth(rows.table)


def test_an_encoding_comes_back_from_json(tmp_path: Path) -> None:
    table = table_of(tmp_path, 'n,t,y\n1,"a ""b""",x\n2,ü,z\n,ü,x\n4,"a ""b""",x\n')
    encoding = TableEncoding.fit(table)
    again: Any = TableEncoding.from_json(json.loads(json.dumps(encoding.to_json())))
    assert again == encoding
    assert TableEncoding.from_json(TableEncoding.fit(table, "t").to_json()) == TableEncoding.fit(table, "t")


def test_columns_that_an_encoding_needs_are_asked_for(tmp_path: Path) -> None:
    encoding = TableEncoding.fit(table_of(tmp_path, "n,t,y\n1,a,0\n2,b,1\n"))
    with pytest.raises(ValueError, match="no column 't'"):
        encoding.rows(table_of(tmp_path, "n,y\n1,0\n"))
    assert len(encoding.rows(table_of(tmp_path, "n,t\n1,a\n"), has_target=False)) == 1
