"""Results of every type, as files and as messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inference_service.api.mapping import prediction_result
from inference_service.domain.predictions import Prediction, ResultType
from inference_service.storage import results
from inference_service.storage.results import read_page
from inference_service.storage.specs import INDEX_FILE, RESULT_FILE, write_json
from inference_service.worker import result_files
from inference_service.worker.pairs import compared
from inference_service.worker.result_files import ResultFiles
from servicekit.errors import Code, ServiceError
from servicekit.jobs import InstanceGroup
from servicekit.times import utc_now


def make_prediction(count: int, kind: ResultType = ResultType.CLASSIFICATION, **changes: Any) -> Prediction:
    values: dict[str, Any] = {
        "uid": "uid",
        "name": "p",
        "owner": "alice",
        "model_uid": "m",
        "model_name": "online",
        "group": InstanceGroup("g", "local"),
        "created_at": utc_now(),
        "job_id": "job",
        "threshold": "0",
        "sample_count": count,
        "result_type": kind,
    }
    return Prediction(**values | changes)


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    files = ResultFiles(folder / "output")
    files.append(rows)
    files.publish()


def test_a_report_is_that_of_the_published_results(tmp_path: Path) -> None:
    scores = [{"index": 0, "label": "cat", "prob": 0.5, "bbox": [0, 0, 1, 1]}]
    rows = [{"sampleId": "a", "file": "a", "scores": []}, {"sampleId": "b", "file": "b", "scores": scores}]
    write(tmp_path, [*rows, {"sampleId": "c", "file": "c", "error": "junk"}])
    (tmp_path / "output" / "position.json").unlink()
    position = ResultFiles(tmp_path / "output").position
    assert (position.samples, position.unreadable, position.has_boxes) == (3, ["c"], True)
    assert position.reason
    assert position.best == {"sample": "b", "index": 0, "label": "cat", "probability": 0.5}


def classified(count: int) -> list[dict[str, Any]]:
    scores = [{"index": 0, "label": "cat", "prob": 0.5}]
    return [{"sampleId": f"s{index}", "file": f"f{index}", "scores": scores} for index in range(count)]


@pytest.mark.parametrize(
    ("start", "length", "found"),
    [
        (0, None, (0, 3100)),
        (0, 5, (0, 5)),
        (999, 3, (999, 1002)),
        (1000, 1, (1000, 1001)),
        (2999, None, (2999, 3100)),
        (3099, 50, (3099, 3100)),
        (3100, 5, (3100, 3100)),
        (9999, None, (3100, 3100)),
    ],
)
def test_pages(tmp_path: Path, start: int, length: int | None, found: tuple[int, int]) -> None:
    write(tmp_path, classified(3100))
    page = read_page(tmp_path, make_prediction(3100), start, length, "/in")
    assert [result.sample_id for result in page.results] == [f"s{index}" for index in range(*found)]  # type: ignore[union-attr]
    assert prediction_result(page).total == 3100


def test_answers_that_do_not_fit_say_how_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "MAX_ANSWER_BYTES", 2000)
    write(tmp_path, classified(100))
    with pytest.raises(ServiceError, match=r"start and length, or read results\.jsonl") as caught:
        read_page(tmp_path, make_prediction(100), 0, None, "/in")
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert len(read_page(tmp_path, make_prediction(100), 50, 5, "/in").results) == 5


def test_a_line_is_as_large_as_what_becomes_of_it(tmp_path: Path) -> None:
    from google.protobuf.json_format import MessageToJson

    label = 'ä"\\\n€'
    scores = [
        {"index": index, "label": label, "prob": 1 / (index + 3), "bbox": [0.1, 1 / 3, 2, 3]} for index in range(9)
    ]
    rows = [{"sampleId": label * 5, "file": label * 5, "scores": scores}]
    write(tmp_path, rows)
    line = (tmp_path / "output" / RESULT_FILE).read_bytes()
    page = read_page(tmp_path, make_prediction(1, ResultType.DETECTION), 0, None, "/in")
    text = MessageToJson(prediction_result(page).detection_results[0], indent=None, ensure_ascii=False)
    assert len(text.encode()) <= len(line) + len("/in") + results._NAMES_BYTES


def test_objects(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            {
                "sampleId": "a.png",
                "file": "00000-a.png",
                "scores": [{"index": 1, "label": "dog", "prob": 0.75, "bbox": [1, 2.5, 30, 40]}],
            },
            {"sampleId": "b.png", "file": "00001-b.png", "scores": []},
            {"sampleId": "c.png", "file": "00002-c.png", "error": "not a picture"},
        ],
    )
    answer = prediction_result(read_page(tmp_path, make_prediction(3, ResultType.DETECTION), 0, None, "/in"))
    assert (answer.type, len(answer.classification_results)) == ("detection", 0)
    first, second, third = answer.detection_results
    [found] = first.results
    assert (first.sample_id, first.input_path, first.is_image) == ("a.png", "/in/00000-a.png", True)
    assert (found.label, found.probability, found.bounding_box) == ("dog", 0.75, "1,2.5,30,40")
    assert (second.is_image, third.is_image, len(third.results)) == (True, False, 0)


class Comparing:
    """Distance of the first numbers."""

    def compare(self, first: list[float], second: list[float]) -> tuple[float, bool]:
        distance = abs(first[0] - second[0])
        return distance, distance < 1


def test_pairs(tmp_path: Path) -> None:
    rows = [{"sampleId": name, "file": f"f-{name}", "vector": [number]} for name, number in (("a", 1.0), ("b", 1.5))]
    rows += [{"sampleId": "c", "file": "f-c", "vector": [3.0]}, {"sampleId": "d", "file": "f-d", "error": "empty"}]
    write(tmp_path, list(compared(rows, Comparing())))
    answer = prediction_result(read_page(tmp_path, make_prediction(4, ResultType.COMPARISON), 0, None, "/in"))
    assert (answer.type, answer.total) == ("comparison", 2)
    first, second = answer.comparison_results
    assert (first.first_sample_id, first.second_sample_id, first.input_path) == ("a", "b", "/in/f-a")
    assert (first.distance, first.is_similar, first.is_image) == (0.5, True, True)
    assert (second.is_image, second.HasField("distance"), second.HasField("is_similar")) == (False, False, False)


def test_vectors_and_rows_of_tables(tmp_path: Path) -> None:
    write(tmp_path, [{"sampleId": "t.csv:0", "file": "t.csv", "vector": [1.5, -2.0]}])
    prediction = make_prediction(1, ResultType.VECTOR, are_images=False)
    answer = prediction_result(read_page(tmp_path, prediction, 0, None, "/in"))
    [row] = answer.vector_results
    assert (row.sample_id, row.input_path, row.is_image, list(row.vector)) == ("t.csv:0", "/in/t.csv", False, [1.5, -2])


def test_what_is_written_can_be_read_however_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = [(index + 1) / 3 for index in range(700_000)]
    write(tmp_path / "long", [{"sampleId": "a", "file": "f-a", "vector": vector}])
    [row] = read_page(tmp_path / "long", make_prediction(1, ResultType.VECTOR), 0, None, "/in").results
    assert list(row.vector) == vector  # type: ignore[union-attr]
    for module in (results, result_files):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 2000)
    rows = classified(3)
    rows[1]["vector"] = vector
    write(tmp_path / "longer", rows)
    found = read_page(tmp_path / "longer", make_prediction(3), 0, None, "/in").results
    assert [row.sample_id for row in found] == ["s0", "s1", "s2"]  # type: ignore[union-attr]
    assert ["at most 2000 are kept" in row.error for row in found] == [False, True, False]


def test_results_of_former_releases(tmp_path: Path) -> None:
    scores = [{"index": 7, "label": "seven", "probability": 0.9}]
    rows = [
        {"sample_id": "7.png", "input_path": "/in/00000-7.png", "scores": scores, "error": ""},
        {"sample_id": "x", "input_path": "/in/00001-x", "scores": [], "error": "no picture"},
    ]
    write_json(tmp_path / "output" / "results.json", rows)
    prediction = make_prediction(2, result_file="results.json")
    answer = prediction_result(read_page(tmp_path, prediction, 0, None, "/in"))
    first, second = answer.classification_results
    assert (first.input_path, first.results[0].label, second.is_image) == ("/in/00000-7.png", "seven", False)
    assert len(read_page(tmp_path, prediction, 1, 1, "/in").results) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}\n",
        b'{"sampleId": "a"',
        b"[1]\n",
        b'{"sampleId":"a","file":"f","vector":[NaN]}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, classified(1))
    (tmp_path / "output" / RESULT_FILE).write_bytes(content)
    with pytest.raises(ServiceError) as caught:
        read_page(tmp_path, make_prediction(1), 0, None, "/in")
    assert (caught.value.code, caught.value.reason) == (Code.ABORTED, "RESULTS_DAMAGED")


def test_links_and_false_indexes_lead_nowhere(tmp_path: Path) -> None:
    write(tmp_path, classified(2000))
    (tmp_path / "output" / INDEX_FILE).write_bytes(b"\x07" * 16)
    with pytest.raises(ServiceError, match="cannot be read"):
        read_page(tmp_path, make_prediction(2000), 1500, 1, "/in")
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "output" / RESULT_FILE).unlink()
    (tmp_path / "output" / RESULT_FILE).symlink_to(tmp_path / "secret")
    with pytest.raises(ServiceError) as caught:
        read_page(tmp_path, make_prediction(1), 0, None, "/in")
    assert "secret" not in caught.value.message
