"""What models are asked before they are called ready, and which answers are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dlmesh_sdk.served import describe
from inference_service.triton.probes import former_probe, probe_arrays, probe_complaint, probe_of, probe_with_item
from template_bundles import SERVING
from tritonclient.grpc.model_config_pb2 import ModelConfig

CLASSIFIER = probe_of(describe(SERVING["pytorch-image-classification"]))


@pytest.mark.parametrize("template", SERVING)
def test_every_input_is_asked_with_what_it_takes(template: str) -> None:
    facts = describe(SERVING[template])
    arrays = probe_arrays(probe_of(facts))
    assert list(arrays) == [tensor.name for tensor in facts.inputs]
    for tensor in facts.inputs:
        shape = arrays[tensor.name].shape
        assert shape[0] == 1
        assert all(side in (-1, given) for side, given in zip(tensor.shape, shape[1:], strict=True))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[0.2, 0.5, 0.3]], ""),
        ([[0.0, 0.0, 0.0]], "probabilities"),
        ([[0.2, 0.5, 0.4]], "probabilities"),
        ([[np.nan, 0.5, 0.5]], "OUTPUT__0"),
    ],
)
def test_probabilities_are_finite_and_add_up(values: list[list[float]], words: str) -> None:
    complaint = probe_complaint(CLASSIFIER, {"OUTPUT__0": np.array(values, np.float32)})
    assert (words in complaint) if words else not complaint


def test_vectors_are_finite() -> None:
    probe = probe_of(describe(SERVING["pytorch-image-to-vector"]))
    assert probe_complaint(probe, {"OUTPUT__0": np.array([[7.0, -3.0]])}) == ""
    assert probe_complaint(probe, {"OUTPUT__0": np.array([[7.0, np.inf]])})
    assert probe_complaint(probe, {})


@pytest.mark.parametrize(
    ("result", "is_fine"), [('{"scores": []}', True), ('{"error": "no"}', False), ("[]", False), ("", False)]
)
def test_results_are_no_errors(result: str, is_fine: bool) -> None:
    probe = probe_with_item(b"\x00\xffitem")
    assert probe_arrays(probe)["ITEM"].tolist() == [[b"\x00\xffitem"]]
    assert (probe_complaint(probe, {"RESULT": np.array([[result.encode()]], np.object_)}) == "") is is_fine


def test_entries_of_former_releases_are_classifiers() -> None:
    config = ModelConfig(name="old")
    config.input.add(name="INPUT__0", dims=[1, 8, 8])
    probe = former_probe(config)
    assert {name: array.shape for name, array in probe_arrays(probe).items()} == {"INPUT__0": (1, 1, 8, 8)}
    assert json.loads(probe)["probabilities"]


def test_what_would_fill_the_memory_of_the_service_is_not_asked() -> None:
    with pytest.raises(ValueError, match="4800000000 numbers"):
        probe_arrays(json.dumps({"inputs": {"INPUT__0": ["FP32", [1, 3, 40_000, 40_000], 0]}, "probabilities": True}))
