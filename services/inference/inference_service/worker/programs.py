"""Models that are only a program: Triton takes encoded pictures (ITEM) and answers results as JSON (RESULT)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dlmesh_sdk.served import Encoded, Item, Unreadable
from dlmesh_sdk.served.pictures import open_picture

from inference_service.worker.triton_client import ITEM, RESULT


class Program:
    """Stands where other models have their `Served`."""

    task = "classification"

    def items(self, file: Path, name: str) -> Iterator[Item]:
        """The picture itself."""
        yield Item(name, file)

    def count_bytes(self, item: Item) -> int:
        """Of what Triton is sent for it, about."""
        try:
            return int(item.value.stat().st_size)
        except (AttributeError, OSError):
            return 0

    def encode_alike(self, items: Sequence[Item]) -> list[Encoded]:
        """Bytes have no shape."""
        return [self.encode(items)]

    def encode(self, items: Sequence[Item]) -> Encoded:
        """Pictures as they are in their files, once they are known to be some."""
        contents, errors = [], {}
        for item in items:
            try:
                if isinstance(item.value, Unreadable):
                    raise ValueError(item.value.reason)
                open_picture(item.value)
                contents.append(item.value.read_bytes())
            except (ValueError, OSError) as error:
                errors[item.sample_id] = str(error)
        inputs = {ITEM: np.array(contents, np.object_).reshape(-1, 1)} if contents else {}
        return Encoded(tuple(item.sample_id for item in items), inputs, errors)

    def results(
        self, encoded: Encoded, outputs: Mapping[str, np.ndarray[Any, Any]], threshold: float
    ) -> list[dict[str, Any]]:
        """What the program said of each; ValueError when that is nothing that a result can be."""
        answers: Any = outputs[RESULT].reshape(-1) if encoded.readable else ()
        if len(answers) != len(encoded.readable):
            raise ValueError(f"{len(answers)} answers for {len(encoded.readable)} samples")
        found = {name: {"error": reason} for name, reason in encoded.errors.items()}
        for name, answer in zip(encoded.readable, answers, strict=True):
            found[name] = _result(json.loads(answer), threshold)
        return [{"sampleId": name, **found[name]} for name in encoded.sample_ids]


def _result(answer: Any, threshold: float) -> dict[str, Any]:
    try:
        if "error" in answer:
            return {"error": str(answer["error"])}
        if "vector" in answer:
            return {"vector": [_finite(value) for value in answer["vector"]]}
        scores = [_score(score) for score in answer["scores"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no result of a sample: {error!r}") from error
    kept = [score for score in scores if score["prob"] >= threshold]
    return {"scores": sorted(kept, key=lambda score: -score["prob"])}


def _score(score: Mapping[str, Any]) -> dict[str, Any]:
    kept = {"index": int(score.get("index", -1)), "label": str(score["label"]), "prob": _finite(score["prob"])}
    return kept if "bbox" not in score else {**kept, "bbox": [_finite(edge) for edge in score["bbox"]]}


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("a number that is not finite")
    return number
