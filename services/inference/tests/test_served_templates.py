"""Every PyTorch template: validation, batch prediction, and Triton's tensors and items answer the same."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dlmesh_sdk import served
from predicted import predicted
from template_bundles import REGRESSION, SERVING, ask, ask_items, validated, write_bundle, write_pictures, write_table
from triton_fixtures import ServedHome, make_model
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.triton

CASES = [*((template, None) for template in SERVING), ("pytorch-tabular", REGRESSION)]
NAMES = [*SERVING, "pytorch-tabular of numbers"]


def plain(result: Mapping[str, Any]) -> list[Any]:
    """A result as numbers: rows of index, probability and box, or a vector."""
    if "vector" in result:
        return list(result["vector"])
    return [[score["index"], score["prob"], *score.get("bbox", ())] for score in result["scores"]]


def plain_file(document: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The same of a validation's result file, by sample."""
    found: dict[str, list[Any]] = defaultdict(list)
    for row in document["result"]:
        if "vector" in row:
            found[row["sampleId"]] = row["vector"]
            continue
        box = [float(edge) for edge in row["bbox"].split(",")] if "bbox" in row else []
        found[row["sampleId"]].append([LABEL_INDEX[row["label"]], row["prob"], *box])
    return found


LABEL_INDEX = {"ant": 0, "bee": 1, "cat": 2}


def assert_same(found: list[Any], expected: list[Any]) -> None:
    """To 1e-5, and boxes to 1e-5 of a picture's side."""
    ours, theirs = np.atleast_2d(np.array(found)), np.atleast_2d(np.array(expected))
    numbers = slice(None) if ours.shape[1] != BOX_COLUMNS else slice(2)
    np.testing.assert_allclose(ours[:, numbers], theirs[:, numbers], rtol=1e-5, atol=1e-5)
    if ours.shape[1] == BOX_COLUMNS:
        np.testing.assert_allclose(ours[:, 2:], theirs[:, 2:], rtol=1e-5, atol=1e-5 * LONGEST_SIDE)


# Index, probability and a box; no vector here is as long.
BOX_COLUMNS, LONGEST_SIDE = 6, 90


@pytest.mark.slow
@pytest.mark.parametrize(("template", "serving"), CASES, ids=NAMES)
async def test_all_paths_answer_the_same(
    triton: ServedHome, tmp_path: Path, template: str, serving: dict[str, Any] | None
) -> None:
    name = f"{template}{'-numbers' if serving else ''}"
    checkpoints = tmp_path / "checkpoints"
    code = write_bundle(template, checkpoints, serving)
    await triton.repository.publish(make_model(name, code, checkpoints))
    client = triton.client()
    await client.load(name)
    await client.probe(name, 1)
    await client.close()

    model = served.load(triton.home / "inference" / "repository" / name / "1" / "bundle")
    if model.task in ("tabular", "text"):
        source = tmp_path / "rows.csv"
        requests = [json.dumps(row).encode() for row in write_table(source)]
        items = list(model.items(source, "rows.csv"))
        names = [item.sample_id.removeprefix("rows.csv:") for item in items]
    else:
        source = tmp_path / "pictures"
        files = write_pictures(source)
        requests = [file.read_bytes() for file in files]
        items = [item for file in files for item in model.items(file, file.name)]
        names = [file.name for file in files]
    encoded = model.encode(items)
    assert encoded.errors == {}
    outputs = await asyncio.to_thread(ask, triton, name, encoded.inputs)
    batch = [plain(result) for result in model.results(encoded, outputs)]
    assert all(batch), "something to compare"
    assert batch[0] != batch[1]

    online = [plain(result) for result in await asyncio.to_thread(ask_items, triton, name, requests)]
    one_by_one = [plain((await asyncio.to_thread(ask_items, triton, name, [each]))[0]) for each in requests]
    checked = plain_file(await asyncio.to_thread(validated, code, checkpoints, source, tmp_path / "output"))
    for number, expected in enumerate(batch):
        for other in (online[number], one_by_one[number], checked[names[number]]):
            assert_same(other, expected)

    report, rows = await asyncio.to_thread(predict_pairs_or_all, triton, name, source, tmp_path / "prediction")
    assert report["unreadable"] == []
    if model.task == "comparison":
        assert [(row["sampleId1"], row["sampleId2"]) for row in rows] == [(names[0], names[1]), (names[2], names[3])]
        for row, first, second in zip(rows, batch[::2], batch[1::2], strict=False):
            distance, is_similar = model.compare(first, second)
            assert (row["distance"], row["isSimilar"]) == (pytest.approx(distance, abs=1e-5), is_similar)
        return
    assert [row["sampleId"] for row in rows] == [item.sample_id for item in items]
    for row, expected in zip(rows, batch, strict=True):
        assert_same(plain(row), expected)
    kinds = {"detection": "detection", "vector": "vector"}
    assert report["type"] == ("vector" if serving else kinds.get(model.task, "classification"))
    assert report["are_images"] is (model.task not in ("tabular", "text"))


def predict_pairs_or_all(triton: ServedHome, name: str, source: Path, folder: Path) -> Any:
    """By the worker of predictions: a table, the pictures of a folder, or the first four to compare two by two."""
    if source.is_file():
        return predicted(triton, name, source.parent, folder, [source.name])
    pictures = sorted(file.name for file in source.iterdir())
    return predicted(triton, name, source, folder, pictures[:4] if "comparison" in name else None)


async def test_one_unreadable_item_or_request_spoils_no_other(triton: ServedHome, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    code = write_bundle("pytorch-image-classification", checkpoints)
    await triton.repository.publish(make_model("mixed", code, checkpoints))
    client = triton.client()
    await client.load("mixed")
    await client.close()
    picture = write_pictures(tmp_path / "pictures")[0].read_bytes()
    for item in (b"", b"junk", picture[:100]):
        good, bad = await asyncio.to_thread(ask_items, triton, "mixed", [picture, item])
        assert sum(score["prob"] for score in good["scores"]) == pytest.approx(1.0, abs=1e-5)
        assert set(bad) == {"error"}
    shape = (1, 3, 20, 24)
    answers = await asyncio.gather(
        *(asyncio.to_thread(ask_items, triton, "mixed", [item]) for item in [picture, b"junk"] * 8),
        *(asyncio.to_thread(ask, triton, "mixed", {"INPUT__0": np.zeros(shape, np.float32)}) for _ in range(8)),
    )
    assert ["scores" in answer[0] for answer in answers[:16]] == [True, False] * 8
    assert all(answer["OUTPUT__0"].sum() == pytest.approx(1.0, abs=1e-5) for answer in answers[16:])
    both = {"INPUT__0": np.zeros(shape, np.float32), "ITEM": np.array([[picture]], np.object_)}
    tensor, item = ({name: array} for name, array in both.items())
    assert set(await asyncio.to_thread(ask, triton, "mixed", tensor, ["OUTPUT__0"])) == {"OUTPUT__0"}
    for inputs, outputs, words in (
        (both, [], "needed are ITEM alone, or INPUT__0; given:"),
        (tensor, ["RESULT"], "RESULT is the answer to ITEM"),
        (item, ["OUTPUT__0"], "ITEM is answered with RESULT"),
    ):
        with pytest.raises(InferenceServerException, match=words) as caught:
            await asyncio.to_thread(ask, triton, "mixed", inputs, outputs)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


async def test_numbers_that_no_text_has_fail_alone(triton: ServedHome, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    code = write_bundle("pytorch-text-classification", checkpoints)
    await triton.repository.publish(make_model("poisoned", code, checkpoints))
    client = triton.client()
    await client.load("poisoned")
    await client.close()
    good = {"TOKENS": np.array([[1, 268]])}
    poisons = [{"TOKENS": np.array(rows)} for rows in ([[1, 10**6]], [[-1, 3]], [[0, 0]], [[1] * 17])]

    def outcome(inputs: Mapping[str, Any]) -> str:
        try:
            return "answered" if np.isfinite(ask(triton, "poisoned", inputs)["OUTPUT__0"]).all() else "junk"
        except InferenceServerException as error:
            return f"{error.status()} {error.message()}"

    # So many at once that Triton makes batches of both.
    outcomes = await asyncio.gather(*(asyncio.to_thread(outcome, each) for each in [good, *poisons] * 8))
    assert outcomes[::5] == ["answered"] * 8
    assert all(
        words.startswith("StatusCode.INVALID_ARGUMENT TOKENS: ") for number, words in enumerate(outcomes) if number % 5
    )


async def test_texts_of_different_lengths_are_batched(triton: ServedHome, tmp_path: Path) -> None:
    template = "pytorch-text-classification"
    checkpoints = tmp_path / "checkpoints"
    code = write_bundle(template, checkpoints)
    await triton.repository.publish(make_model("lengths", code, checkpoints))
    client = triton.client()
    await client.load("lengths")
    await client.close()
    model = served.load(triton.home / "inference" / "repository" / "lengths" / "1" / "bundle")
    texts = [b"ant " * count for count in range(1, 13)]
    batch = await asyncio.to_thread(ask_items, triton, "lengths", texts)

    def alone(text: bytes) -> Any:
        return ask(triton, "lengths", model.encode([model.item(text)]).inputs)["OUTPUT__0"][0]

    answers = await asyncio.gather(*(asyncio.to_thread(alone, text) for text in texts))
    for together, probabilities in zip(batch, answers, strict=True):
        for score in together["scores"]:
            assert score["prob"] == pytest.approx(float(probabilities[score["index"]]), abs=1e-5)
    assert len({tuple(answer.round(4)) for answer in answers}) > 6
