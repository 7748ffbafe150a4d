"""What a FabricModel was given, under one name each, whichever of the published spellings the program used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Our name: the published ones. The order is that of positional arguments.
_CONSTRUCTOR: Mapping[str, Sequence[str]] = {
    "model": ("model",),
    "get_datasets": ("getDatasets", "datasets_function", "get_datasets"),
    "loss_function": ("loss_function", "loss_fn"),
    "optimizer": ("optimizer",),
    "metrics": ("metrics",),
    "worker_logger": ("worker_logger_callback", "worker_logger"),
    "driver_logger": ("driver_logger_callback", "driver_logger"),
    "save_to_onnx": ("save_to_onnx", "enable_onnx"),
    "keras_custom_objects": ("keras_custom_objects",),
    "collate": ("fn_batch_collate", "fn_collate"),
    "callbacks": ("user_callback", "user_callbacks", "callbacks"),
    "step_function": ("fn_step_train",),
    "test_function": ("fn_test",),
    "function_arguments": ("fn_args",),
}
_TRAIN: Mapping[str, Sequence[str]] = {
    "epochs": ("epoch_number", "epochs"),
    "batch_size": ("batch_size",),
    "max_workers": ("engines_number", "max_workers"),
    "loader_workers": ("num_dataloader_threads",),
    "validation_epochs": ("validation_freq",),
    "checkpoint_epochs": ("checkpoint_freq",),
    "effective_batch_size": ("effective_batch_size",),
    # What a worker gets is said by the instance group; these are taken and not used.
    "worker_memory": ("worker_memory",),
    "driver_memory": ("driver_memory",),
    "hardware_spec": ("hardware_spec",),
    "worker_number": ("worker_num",),
    "worker_devices": ("worker_device_num",),
}


@dataclass(frozen=True)
class FabricOptions:
    """The constructor's arguments.

    `model` is a torch module or a Keras model, `get_datasets` returns (train, test) and runs on every worker.
    `loss_function` and `optimizer` may be None where a Keras model is compiled, and strings for Keras. `metrics` are
    Keras' own, or for torch functions of (outputs, targets): one, a list, or a dict by names. `callbacks` are the
    user's; `driver_logger` logs on the first worker, `worker_logger` on every worker. `function_arguments` are handed
    to `step_function` and `test_function`.
    """

    model: Any
    get_datasets: Callable[[], tuple[Any, Any]]
    loss_function: Any = None
    optimizer: Any = None
    metrics: Any = ()
    callbacks: Sequence[Any] = ()
    driver_logger: Any = None
    worker_logger: Any = None
    save_to_onnx: bool = False
    keras_custom_objects: Mapping[str, Any] = field(default_factory=dict)
    step_function: Callable[..., Any] | None = None
    test_function: Callable[..., Any] | None = None
    collate: Callable[..., Any] | None = None
    function_arguments: Any = None


@dataclass(frozen=True)
class Sizing:
    """The arguments of `train`. `global_batch_size` counts samples of one optimizer step over all workers and is the
    same on any number of them; 0 in `validation_epochs` or `checkpoint_epochs` means never."""

    epochs: int
    global_batch_size: int
    max_workers: int = 1
    loader_workers: int = 0
    validation_epochs: int = 1
    checkpoint_epochs: int = 1


def train_folder() -> Path:
    """Where weights and checkpoints go: DLMESH_TRAIN_DIR, else model/train in RESULT_DIR, else in this folder."""
    return Path(os.environ.get("DLMESH_TRAIN_DIR") or Path(os.environ.get("RESULT_DIR", ""), "model", "train"))


def read_options(values: Sequence[Any], named: Mapping[str, Any]) -> FabricOptions:
    """The constructor's arguments; TypeError names one that is unknown, missing or given twice."""
    if len(values) == 5 and hasattr(values[4], "log_train_metrics") and "driver_logger" not in named:
        # The older form has it in the fifth place.
        values, named = values[:4], {**named, "driver_logger": values[4]}
    given = _read("FabricModel", _CONSTRUCTOR, values, named)
    for name in ("model", "get_datasets"):
        if given.get(name) is None:
            raise TypeError(f"FabricModel: {name} is missing")
    if not callable(given["get_datasets"]):
        raise TypeError(f"FabricModel: get_datasets is {given['get_datasets']!r}; it has to be a function")
    callbacks = given.get("callbacks")
    if callbacks is not None:
        given["callbacks"] = tuple(callbacks) if isinstance(callbacks, list | tuple) else (callbacks,)
    return FabricOptions(**{name: value for name, value in given.items() if value is not None})


def read_sizing(values: Sequence[Any], named: Mapping[str, Any]) -> Sizing:
    """The arguments of `train`; TypeError or ValueError names the wrong one and what is allowed.

    The most workers are those of `hardware_spec`, else `engines_number`, else `worker_num` times `worker_device_num`,
    but never more than the platform gives (DLMESH_MAX_WORKERS; one where there is no platform). The global batch is
    `effective_batch_size`, else `batch_size` for each of the most workers.
    """
    given = _read("train", _TRAIN, values, named)
    for name in ("epochs", "batch_size"):
        if given.get(name) is None and not (name == "batch_size" and given.get("effective_batch_size")):
            raise TypeError(f"train: {_TRAIN[name][0]} is missing")
    most = _workers_of(given.get("hardware_spec")) or _count(given, "max_workers", least=0)
    most = most or (_count(given, "worker_number", least=0) * (_count(given, "worker_devices", least=0) or 1))
    limit = int(os.environ.get("DLMESH_MAX_WORKERS") or os.environ.get("WORLD_SIZE") or 1)
    workers = min(most or limit, limit)
    total = _count(given, "effective_batch_size", least=0) or _count(given, "batch_size", least=1) * workers
    return Sizing(
        epochs=_count(given, "epochs", least=1),
        global_batch_size=total,
        max_workers=workers,
        loader_workers=_count(given, "loader_workers", least=0),
        validation_epochs=_count(given, "validation_epochs", least=0, default=1),
        checkpoint_epochs=_count(given, "checkpoint_epochs", least=0, default=1),
    )


def _read(
    of: str, spellings: Mapping[str, Sequence[str]], values: Sequence[Any], named: Mapping[str, Any]
) -> dict[str, Any]:
    if len(values) > len(spellings):
        raise TypeError(f"{of}: {len(values)} arguments without names; at most {len(spellings)} are known")
    given = dict(zip(spellings, values, strict=False))
    known = {spelling: name for name, several in spellings.items() for spelling in several}
    for spelling, value in named.items():
        if spelling not in known:
            raise TypeError(f"{of}: {spelling!r} is not known; known: {', '.join(known)}")
        if known[spelling] in given:
            raise TypeError(f"{of}: {spelling} is given twice")
        given[known[spelling]] = value
    return given


def _count(given: Mapping[str, Any], name: str, least: int, default: int = 0) -> int:
    value = given.get(name)
    if value is None:
        return default
    try:
        is_good = not isinstance(value, bool) and int(value) == value and value >= least
    except (TypeError, ValueError, OverflowError):
        is_good = False
    if not is_good:
        raise ValueError(f"train: {_TRAIN[name][0]} is {value!r}; allowed: a whole number from {least}")
    return int(value)


def _workers_of(hardware: Any) -> int:
    """Workers that a hardware specification asks for: nodes times GPUs of each; 0 when it says nothing."""
    try:
        nodes = (hardware or {}).get("nodes") or {}
        return int(nodes.get("num_nodes") or 0) * int((nodes.get("gpu") or {}).get("num_gpu") or 1)
    except (AttributeError, TypeError, ValueError) as error:
        example = {"nodes": {"num_nodes": 2, "gpu": {"num_gpu": 1}}}
        raise ValueError(f"train: hardware_spec is {hardware!r}; allowed: a dict such as {example}") from error
