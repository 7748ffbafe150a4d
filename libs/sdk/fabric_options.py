"""What a FabricModel was given, under one name each, whichever of the published spellings the program used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FabricOptions:
    """The constructor's arguments.

    `model` is a torch module or a Keras model, `get_datasets` returns (train, test) and runs on every worker.
    `loss_function` and `optimizer` may be None where a Keras model is compiled, and strings for Keras. `callbacks` are
    the user's own; `driver_logger` logs on the first worker, `worker_logger` on every worker.
    """

    model: Any
    get_datasets: Callable[[], tuple[Any, Any]]
    loss_function: Any = None
    optimizer: Any = None
    metrics: Sequence[Any] = ()
    callbacks: Sequence[Any] = ()
    driver_logger: Any = None
    worker_logger: Any = None
    save_to_onnx: bool = False
    keras_custom_objects: Mapping[str, Any] = field(default_factory=dict)
    step_function: Callable[..., Any] | None = None
    test_function: Callable[..., Any] | None = None
    collate: Callable[..., Any] | None = None


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
