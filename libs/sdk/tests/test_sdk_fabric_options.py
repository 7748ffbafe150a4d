"""Every published way to say what a FabricModel is made of."""

from __future__ import annotations

from typing import Any

import pytest
from fabric_options import Sizing, read_options, read_sizing


def data() -> Any:
    return [], []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (("m", data, "loss", "opt"), {"driver_logger": "log"}),
        (("m", data, "loss", "opt"), {"driver_logger_callback": "log"}),
        (("m", data), {"loss_fn": "loss", "optimizer": "opt", "driver_logger": "log"}),
        ((), {"model": "m", "getDatasets": data, "loss_function": "loss", "optimizer": "opt", "driver_logger": "log"}),
        (
            (),
            {
                "model": "m",
                "datasets_function": data,
                "loss_function": "loss",
                "optimizer": "opt",
                "driver_logger_callback": "log",
            },
        ),
        (("m", data, "loss", "opt", None, None, "log"), {}),
    ],
)
def test_the_constructor_understands_every_spelling(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    options = read_options(values, named)
    assert (options.model, options.get_datasets, options.loss_function) == ("m", data, "loss")
    assert (options.optimizer, options.driver_logger, options.worker_logger) == ("opt", "log", None)


def test_additions_of_both_keyword_sets() -> None:
    old = read_options(("m", data), {"user_callback": ["a"], "enable_onnx": True, "fn_step_train": 1, "fn_test": 2})
    assert (old.callbacks, old.save_to_onnx, old.step_function, old.test_function) == (("a",), True, 1, 2)
    new = read_options(
        ("m", data),
        {"metrics": ["acc"], "save_to_onnx": True, "keras_custom_objects": {"a": 1}, "fn_batch_collate": 3},
    )
    assert (new.metrics, new.save_to_onnx, new.keras_custom_objects, new.collate) == (["acc"], True, {"a": 1}, 3)


@pytest.mark.parametrize(
    ("values", "named", "message"),
    [
        ((), {}, "model is missing"),
        (("m",), {}, "get_datasets is missing"),
        (("m", "data"), {}, "get_datasets is 'data'; it has to be a function"),
        (("m", data), {"los": 1}, "'los' is not known; known: model, getDatasets"),
        (("m", data), {"model": "n"}, "model is given twice"),
        (("m", data), {"loss_fn": 1, "loss_function": 2}, "given twice"),
    ],
)
def test_a_wrong_argument_is_named(values: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        read_options(values, named)


@pytest.mark.parametrize(
    ("values", "named", "expected"),
    [
        ((3, 8, 4), {}, Sizing(3, 32, 4)),
        ((3, 8, 16), {}, Sizing(3, 32, 4)),
        ((3, 8), {}, Sizing(3, 32, 4)),
        ((3, 8, 2, 5, 2, 0), {}, Sizing(3, 16, 2, 5, 2, 0)),
        ((), {"epoch_number": 3, "batch_size": 8, "engines_number": 3}, Sizing(3, 24, 3)),
        ((3,), {"effective_batch_size": 100}, Sizing(3, 100, 4)),
        ((3, 8), {"effective_batch_size": 100}, Sizing(3, 100, 4)),
        ((3, 8), {"worker_num": 1, "worker_device_num": 2}, Sizing(3, 16, 2)),
        ((3, 8, 4), {"worker_num": 1}, Sizing(3, 32, 4)),
        ((3, 8, 4), {"hardware_spec": {"nodes": {"num_nodes": 3, "gpu": {"num_gpu": 1}}}}, Sizing(3, 24, 3)),
        ((3, 8, 4), {"worker_memory": "8g", "driver_memory": "2g"}, Sizing(3, 32, 4)),
    ],
)
def test_train_understands_every_spelling(
    monkeypatch: pytest.MonkeyPatch, values: tuple[Any, ...], named: dict[str, Any], expected: Sizing
) -> None:
    monkeypatch.setenv("DLMESH_MAX_WORKERS", "4")
    assert read_sizing(values, named) == expected


def test_alone_the_batch_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLMESH_MAX_WORKERS", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert read_sizing((2, 8, 16), {}) == Sizing(2, 8, 1)


@pytest.mark.parametrize(
    ("values", "named", "message"),
    [
        ((), {}, "epoch_number is missing"),
        ((3,), {}, "batch_size is missing"),
        ((0, 8), {}, "epoch_number is 0; allowed: a whole number from 1"),
        ((3, 0), {}, "batch_size is 0"),
        ((3, 8, 1.5), {}, "engines_number is 1.5"),
        ((3, 8), {"validation_freq": -1}, "validation_freq is -1; allowed: a whole number from 0"),
        ((3, 8), {"speed": 1}, "'speed' is not known"),
    ],
)
def test_a_wrong_size_is_named(values: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        read_sizing(values, named)
