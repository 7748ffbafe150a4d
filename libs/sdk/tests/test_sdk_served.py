"""Models between their inputs and their results: what each task takes and answers, and how it fails."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from dlmesh_sdk.served import Item, Served, Unreadable, describe, lacks, load, make
from PIL import Image

SHAPE = {"channels": 1, "height": 4, "width": 6}
TARGET = {"name": "kind", "is_number": False, "labels": ["a", "b"], "mean": 0.0, "deviation": 1.0}
TABLE = {"target": TARGET, "numbers": [["size", 10.0, 4.0]], "texts": [["colour", ["red", "blue"]]]}
TEXT = {"target": TARGET, "column": "text", "length": 6, "characters": "abc", "words": ["ant", "bee"]}


def preprocess(image: Image.Image, channels: int = 1, height: int = 4, width: int = 6) -> Any:
    return np.asarray(image.convert("L").resize((width, height)), np.float32)[None] / 255


PROGRAM = SimpleNamespace(preprocess=preprocess)
CLASSIFIER = make({"labels": ["a", "b", "c"], **SHAPE}, PROGRAM)
DETECTOR = make({"task": "detection", "labels": ["a", "b"], "channels": 1, "height": 4, "width": 6}, PROGRAM)


def picture(width: int = 12, height: int = 8, shade: int = 100) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), shade).save(file, "PNG")
    return file.getvalue()


def shapes(serving: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    facts = describe(serving)
    return {tensor.name: (tensor.datatype, tensor.shape) for tensor in facts.inputs + facts.outputs}


def test_tensors_of_every_task() -> None:
    picture_input = {"INPUT__0": ("FP32", (1, 4, 6))}
    assert shapes({"labels": ["a", "b"], **SHAPE}) == {**picture_input, "OUTPUT__0": ("FP32", (2,))}
    assert shapes({"length": 5, **SHAPE}) == {**picture_input, "OUTPUT__0": ("FP32", (5,))}
    assert shapes({"labels": ["a"]}) == {"INPUT__0": ("FP32", (-1, -1, -1)), "OUTPUT__0": ("FP32", (-1, 6))}
    comparison = {"task": "comparison", "length": 5, "similar_below": 0.5, **SHAPE}
    assert shapes(comparison) == {**picture_input, "OUTPUT__0": ("FP32", (5,))}
    probabilities = {"OUTPUT__0": ("FP32", (2,))}
    table = {"NUMBERS": ("FP32", (2,)), "TEXTS": ("INT64", (1,))}
    assert shapes({"encoding": TABLE}) == {**table, **probabilities}
    numbers = {"encoding": {**TABLE, "texts": [], "target": {**TARGET, "labels": []}}}
    assert shapes(numbers) == {"NUMBERS": ("FP32", (2,)), "OUTPUT__0": ("FP64", (1,))}
    assert shapes({"encoding": TEXT}) == {"TOKENS": ("INT64", (-1,)), **probabilities}
    keras = {"labels": ["a"], "framework": "TensorFlow", **SHAPE}
    assert shapes(keras)["INPUT__0"] == ("FP32", (4, 6, 1))


@pytest.mark.parametrize(
    ("serving", "words"),
    [
        ({"labels": ["a"], "channels": 1}, "no height, width"),
        ({"labels": [], **SHAPE}, "no labels"),
        ({"labels": ["a"], **SHAPE, "height": 0}, "empty input"),
        ({"labels": ["a"], **SHAPE, "height": "tall"}, "tall"),
        ({"labels": ["a"], **SHAPE, "height": 40_000, "width": 40_000}, "inputs of a sample have 6400000000 bytes"),
        ({"task": "vector", "length": 10**9, **SHAPE}, "outputs of a sample have 4000000000 bytes"),
        ({"labels": 7, **SHAPE}, "int"),
        ({"labels": 7}, "int"),
        ({"labels": ["a"], **SHAPE, "height": math.inf}, "infinity"),
        ({"encoding": {**TABLE, "target": []}}, "list"),
        ({"task": ["text"]}, "not known"),
        ({"task": "song"}, "allowed: classification"),
        ({"task": "comparison", "length": 4, **SHAPE}, "no similar_below"),
        ({"encoding": {"numbers": []}}, "target"),
        ({}, "no labels, channels, height, width"),
    ],
)
def test_what_serving_json_does_not_say_is_named(serving: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        describe(serving)


def test_what_is_lacking_is_listed() -> None:
    assert lacks({"labels": ["a"], "width": 4}) == ["channels", "height"]
    assert lacks({"labels": ["a"], **SHAPE}) == []


def test_scores_reach_the_threshold_the_most_probable_first() -> None:
    encoded = CLASSIFIER.encode([Item("x", picture()), Item("bad", b"junk"), Item("y", picture(3, 99))])
    assert encoded.inputs["INPUT__0"].shape == (2, 1, 4, 6)
    assert encoded.inputs["INPUT__0"].dtype == np.float32
    assert (encoded.readable, encoded.sizes) == (("x", "y"), ((8, 12), (99, 3)))
    outputs = {"OUTPUT__0": np.array([[0.2, 0.5, 0.3], [0.9, 0.0, 0.1]], np.float32)}
    first, bad, second = CLASSIFIER.results(encoded, outputs, 0.3)
    assert [(score["index"], score["label"]) for score in first["scores"]] == [(1, "b"), (2, "c")]
    assert first["scores"][0]["prob"] == pytest.approx(0.5)
    assert bad == {"sampleId": "bad", "error": "not a picture that is decoded here"}
    assert (second["sampleId"], len(second["scores"])) == ("y", 1)
    json.dumps([first, bad, second], allow_nan=False)


def test_answers_that_are_none_are_said() -> None:
    encoded = CLASSIFIER.encode([Item("x", picture()), Item("y", picture())])
    rows = np.array([[0.2, math.nan, 0.3], [0.9, 0.0, 0.1]], np.float32)
    first, second = CLASSIFIER.results(encoded, {"OUTPUT__0": rows})
    assert "not finite" in first["error"]
    assert second["scores"]
    assert "3 labels" in CLASSIFIER.results(encoded, {"OUTPUT__0": rows[:, :2]})[1]["error"]
    with pytest.raises(ValueError, match="1 rows of outputs for 2 samples"):
        CLASSIFIER.results(encoded, {"OUTPUT__0": rows[:1]})


def test_a_batch_of_nothing_readable() -> None:
    encoded = CLASSIFIER.encode([Item("x", b""), Item("y", Unreadable("gone"))])
    assert encoded.inputs == {}
    assert [result["error"] for result in CLASSIFIER.results(encoded, {})] == ["the file is empty", "gone"]


def test_a_preprocess_that_fails_is_the_samples_error() -> None:
    def choosy(image: Image.Image, **_: int) -> Any:
        if image.width > 20:
            raise RuntimeError("too wide for me")
        return np.zeros((1, 4, 30 if image.height > 20 else 6))

    model = make({"labels": ["a"], **SHAPE}, SimpleNamespace(preprocess=choosy))
    encoded = model.encode([Item("high", picture(5, 21)), Item("fine", picture()), Item("wide", picture(21))])
    assert set(encoded.errors) == {"wide", "high"}
    assert "too wide for me" in encoded.errors["wide"]
    assert "(1, 4, 30)" in encoded.errors["high"]
    assert len(encoded.inputs["INPUT__0"]) == 1


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_a_programs_preprocess_is_never_called_twice_at_once(task: str) -> None:
    now, most, pause = 0, 0, threading.Event()

    def careless(image: Image.Image, **shape: int) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        pause.wait(0.02)
        now -= 1
        return preprocess(image)

    model = make({"task": task, "labels": ["a"], **SHAPE}, SimpleNamespace(preprocess=careless))
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(model.encode, [[Item(str(number), picture())] for number in range(8)]))
    assert [encoded.errors for encoded in batches] == [{}] * 8
    assert most == 1


def test_boxes_are_in_pixels_of_the_file() -> None:
    encoded = DETECTOR.encode([Item("x", picture(120, 80))])
    rows = np.array([[[0.5, 0.25, 1.0, 0.5, 0.4, 1], [0, 0, 0.5, 1, 0.9, 0], [0, 0, 0, 0, 0, 0]]], np.float32)
    [result] = DETECTOR.results(encoded, {"OUTPUT__0": rows})
    assert [score["label"] for score in result["scores"]] == ["a", "b"]
    assert [score["bbox"] for score in result["scores"]] == [[0, 0, 60, 80], [60, 20, 120, 40]]
    [result] = DETECTOR.results(encoded, {"OUTPUT__0": rows}, 0.5)
    assert [score["label"] for score in result["scores"]] == ["a"]
    for label in (2, -1, 1e9):
        rows[0, 0, 5] = label
        assert f"label {label:g} of 2" in DETECTOR.results(encoded, {"OUTPUT__0": rows})[0]["error"]


def test_pictures_that_keep_their_sizes_are_batched_by_them() -> None:
    model = make(
        {"task": "detection", "labels": ["a"]},
        SimpleNamespace(preprocess=lambda image: np.asarray(image, np.float32)[None] / 255),
    )
    sizes = {"s": (12, 8), "w": (30, 8), "t": (12, 8), "h": (12, 20)}
    items = [Item(name, picture(*size)) for name, size in sizes.items()]
    batches = model.encode_alike([*items, Item("bad", b"junk")])
    assert [batch.sample_ids for batch in batches] == [("bad",), ("s", "t"), ("w",), ("h",)]
    assert [batch.inputs["INPUT__0"].shape for batch in batches[1:]] == [(2, 1, 8, 12), (1, 1, 8, 30), (1, 1, 20, 12)]
    assert [batch.sizes for batch in batches[1:]] == [((8, 12), (8, 12)), ((8, 30),), ((20, 12),)]
    [alone] = model.encode_alike([items[0], Item("bad", b"junk")])
    assert (alone.readable, alone.sizes) == (("s",), ((8, 12),))
    with pytest.raises(ValueError, match="several shapes"):
        model.encode(items)


def test_vectors_and_how_near_they_are() -> None:
    model = make({"task": "comparison", "length": 2, "similar_below": 0.5, **SHAPE}, PROGRAM)
    encoded = model.encode([Item("x", picture())])
    assert model.results(encoded, {"OUTPUT__0": np.array([[0.6, 0.8]], np.float32)})[0]["vector"] == pytest.approx(
        [0.6, 0.8]
    )
    assert model.compare([0.0, 1.0], [0.0, 0.6]) == (pytest.approx(0.4), True)
    assert model.compare([0.0, 1.0], [0.0, 0.5]) == (0.5, False)
    with pytest.raises(ValueError, match="does not compare"):
        CLASSIFIER.compare([0.0], [0.0])


@pytest.fixture(scope="module")
def table() -> Served:
    return make({"encoding": TABLE}, PROGRAM)


def test_rows_of_a_file(table: Served, tmp_path: Path) -> None:
    file = tmp_path / "upload"
    file.write_text("colour,more,size\nred,1,14\ngreen,2,\nred,3\nblue,4,many\n")
    items = list(table.items(file, "rows.csv"))
    assert [item.sample_id for item in items] == [f"rows.csv:{number}" for number in range(4)]
    encoded = table.encode(items)
    assert encoded.inputs["NUMBERS"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert encoded.inputs["TEXTS"].tolist() == [[1], [0]]
    assert (encoded.inputs["NUMBERS"].dtype, encoded.inputs["TEXTS"].dtype) == (np.float32, np.int64)
    assert "2 cells" in encoded.errors["rows.csv:2"]
    assert "'many'" in encoded.errors["rows.csv:3"]
    assert str(tmp_path) not in str(encoded.errors)


def test_files_that_are_no_table(table: Served, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "other").write_text("a,b\n1,2\n")
    for name in ("pipe", "empty", "none", "other"):
        [item] = table.items(tmp_path / name, "f.csv")
        error = table.encode([item]).errors[item.sample_id]
        assert error
        assert str(tmp_path) not in error
    assert "'size'" in error


def test_rows_of_requests(table: Served) -> None:
    def inputs(content: bytes) -> Any:
        encoded = table.encode([table.item(content, "x")])
        return encoded.errors.get("x") or [array.tolist()[0] for array in encoded.inputs.values()]

    assert inputs(b'{"size": 14, "colour": "blue", "kind": "b"}') == [[1.0, 0.0], [2]]
    assert inputs(b'{"size": "14", "colour": null}') == [[1.0, 0.0], [0]]
    assert "'colour' is missing" in inputs(b'{"size": 1}')
    for junk in (b"", b"[1]", b"{", b"\xff", b'{"size": [1], "colour": ""}', b"[" * 100_000):
        assert "not a row" in inputs(junk)
    assert "no finite number" in inputs(b'{"size": NaN, "colour": ""}')


def test_texts_of_files_and_requests(tmp_path: Path) -> None:
    model = make({"encoding": TEXT}, PROGRAM)
    file = tmp_path / "upload"
    file.write_bytes("\ufeffant bee\r\nbee\n\n".encode() + b"\xff\n" + b"bee " * 3_000_000)
    items = list(model.items(file, "notes.txt"))
    assert [item.sample_id for item in items] == [f"notes.txt:{number}" for number in range(5)]
    assert [item.value for item in items[:3]] == ["ant bee", "bee", ""]
    encoded = model.encode(items)
    assert encoded.errors == {"notes.txt:3": "not UTF-8: invalid start byte"}
    # Padded to the longest, which is cut at `length`.
    assert encoded.inputs["TOKENS"].shape == (4, 6)
    assert encoded.inputs["TOKENS"][0, 3:].tolist() == [0, 0, 0]
    file.write_text('kind,text\na,"ant, bee"\n')
    [item] = model.items(file, "rows.csv")
    same = [item, model.item(b"ant, bee"), model.item(b'{"text": "ant, bee"}')]
    tokens = model.encode([Item(str(number), each.value) for number, each in enumerate(same)]).inputs["TOKENS"]
    assert (tokens == tokens[0]).all()
    assert (model.item(b"{no json").value, model.item(b'{"other": 1}').value) == ("{no json", '{"other": 1}')


def test_indices_beyond_the_weights_are_refused(table: Served) -> None:
    def complaint(model: Served, name: str, rows: list[list[int]]) -> str:
        try:
            model.check({name: np.array(rows)})
        except ValueError as error:
            return str(error)
        return ""

    assert complaint(table, "TEXTS", [[0], [2]]) == ""
    assert "0 to 2" in complaint(table, "TEXTS", [[0], [3]])
    assert "0 to 2" in complaint(table, "TEXTS", [[-1]])
    text = make({"encoding": TEXT}, PROGRAM)
    most = 3 + 256 + len("abc") + 2 - 1
    assert complaint(text, "TOKENS", [[1, most], [5, 0]]) == ""
    for rows in ([[1, most + 1]], [[1, -2]], [[0, 1]], [[1] * 7], [[]]):
        assert "TOKENS" in complaint(text, "TOKENS", rows)


def test_a_bundle_is_loaded_with_what_lies_beside_its_program(tmp_path: Path) -> None:
    for name, shade in (("one", 1), ("two", 2)):
        bundle = tmp_path / name
        bundle.mkdir()
        (bundle / f"shades_{name}.py").write_text(f"SHADE = {shade}")
        (bundle / "model.py").write_text(
            f"import numpy as np\nfrom shades_{name} import SHADE\n"
            "def preprocess(image, channels, height, width):\n    return np.full((1, 1, 1), SHADE)\n"
        )
        (bundle / "serving.json").write_text(json.dumps({"labels": ["a"], "channels": 1, "height": 1, "width": 1}))
    values = [load(tmp_path / name).encode([Item("x", picture())]).inputs["INPUT__0"].item() for name in ("one", "two")]
    assert values == [1.0, 2.0]
    (tmp_path / "one" / "model.py").unlink()
    with pytest.raises(ValueError, match=r"no model\.py"):
        load(tmp_path / "one")


def test_pictures_need_no_torch() -> None:
    code = (
        "import sys\nfrom types import SimpleNamespace\nfrom dlmesh_sdk import served\n"
        "model = served.make({'labels': ['a'], 'channels': 1, 'height': 1, 'width': 1}, SimpleNamespace())\n"
        "served.describe({'encoding': {'target': {'labels': []}, 'numbers': [['n', 0, 1]], 'texts': []}})\n"
        "model.encode([served.Item('x', b'junk')])\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
