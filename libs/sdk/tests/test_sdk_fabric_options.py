"""Every published way to say what a FabricModel is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from callbacks import LoggerCallback
from dlmesh_sdk.fabric_loggers import call
from dlmesh_sdk.fabric_options import Sizing, read_options, read_sizing, train_folder
from dlmesh_sdk.fabric_training import named_metrics


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


def test_the_fifth_place_is_the_loggers_in_the_older_form() -> None:
    logger = LoggerCallback()
    assert read_options(("m", data, "loss", "opt", logger), {}).driver_logger is logger
    assert read_options(("m", data, "loss", "opt", ["accuracy"]), {}).metrics == ["accuracy"]


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
        (("3", 8), {}, "epoch_number is '3'; allowed: a whole number"),
        ((3, "many"), {}, "batch_size is 'many'"),
        ((3, float("inf")), {}, "batch_size is inf"),
        ((3, [8]), {}, r"batch_size is \[8\]"),
        ((3, 8), {"validation_freq": -1}, "validation_freq is -1; allowed: a whole number from 0"),
        ((3, 8), {"speed": 1}, "'speed' is not known"),
        ((3, 8), {"hardware_spec": "two GPUs"}, "hardware_spec is 'two GPUs'; allowed: a dict such as"),
        ((3, 8), {"hardware_spec": {"nodes": {"num_nodes": "some"}}}, "hardware_spec is"),
    ],
)
def test_a_wrong_size_is_named(values: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        read_sizing(values, named)


@pytest.mark.parametrize(
    ("method", "taken"),
    [
        (lambda loss, acc, completed_batch, worker=0: [loss, acc, completed_batch, worker], [1, 2, 3, 4]),
        (lambda loss, acc: [loss, acc], [1, 2]),
        (lambda loss, acc, **more: [loss, acc, more], [1, 2, {}]),
        (lambda loss, *more, quiet=False: [loss, more, quiet], [1, (2, 3, 4), False]),
    ],
)
def test_callbacks_take_as_much_as_they_want(method: Callable[..., Any], taken: list[Any]) -> None:
    assert call(method, 1, 2, 3, 4) == taken


@pytest.mark.parametrize("metrics", [["auc"], {"loss": abs}, 3])
def test_a_metric_that_is_no_function_is_named(metrics: Any) -> None:
    with pytest.raises(TypeError, match="metrics: "):
        named_metrics(metrics)


def test_metrics_have_names() -> None:
    assert named_metrics(["accuracy", abs]) == named_metrics(abs) == named_metrics({"abs": abs}) == {"abs": abs}


def test_where_weights_go(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DLMESH_TRAIN_DIR", "RESULT_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert str(train_folder()) == "model/train"
    monkeypatch.setenv("RESULT_DIR", "/r")
    assert str(train_folder()) == "/r/model/train"
    monkeypatch.setenv("DLMESH_TRAIN_DIR", "/t")
    assert str(train_folder()) == "/t"
