"""What the templates that predict a column of a table share: task, warm starts and predictions.

A template brings a model.py with `build_model`, a torch module of logits or standardised numbers [B, outputs], and an
encoding: how rows become tensors, which belongs to the weights that were learned with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Protocol, Self, TypeVar

import inference_helper
import torch
from torch import Tensor, nn

from dlmesh_sdk import pth_parameters as parameters
from dlmesh_sdk.served.base import Item
from dlmesh_sdk.served.inference import Predictor
from dlmesh_sdk.served.registry import make
from dlmesh_sdk.table_datasets import UNKNOWN, Table, TableRows, Target
from dlmesh_sdk.training_loop import Task, accuracy, cross_entropy, read_serving
from dlmesh_sdk.wrong_data import UnusableError

BATCH_SIZE = 256


class RowEncoding(Protocol):
    """How rows become tensors; `shape` are the arguments of `build_model`."""

    @property
    def task(self) -> str: ...
    @property
    def target(self) -> Target: ...
    @property
    def shape(self) -> Mapping[str, Any]: ...
    def rows(self, table: Table, has_target: bool = True) -> TableRows: ...
    def to_json(self) -> dict[str, Any]: ...
    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self: ...


Encoding = TypeVar("Encoding", bound=RowEncoding)


def encoding_of(weights: str, kind: type[Encoding], target: str = "") -> Encoding | None:
    """The encoding that initial weights were learned with; None when there are none, or nothing beside them.

    UnusableError when they are of another template, or predict another column than `target`.
    """
    content = read_serving(weights).get("encoding") if weights else None
    if not content:
        return None
    try:
        encoding = kind.from_json(content)
    except (KeyError, TypeError, ValueError):
        raise UnusableError("--weights: they are of another template: serving.json beside them says so") from None
    if target and target != encoding.target.name:
        raise UnusableError(f"--weights: they predict column {encoding.target.name!r} and not {target!r}")
    return encoding


def prediction_task(table: Table, encoding: RowEncoding, build_model: Callable[..., nn.Module]) -> Task:
    """Learning the target's column from the training rows `table`, tested on the test rows of the model's dataset."""
    target = encoding.target
    print(f"Column {target.name}: {len(target.labels) or 'no'} classes", flush=True)

    def error(outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean absolute error in the column's own units."""
        return (outputs.double() - targets).abs().mean() * target.deviation

    def squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs.float(), targets)

    def known_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
        """Over the rows whose label training rows have, too; 0 where there is none."""
        known = targets != UNKNOWN
        return cross_entropy(outputs[known], targets[known]) if bool(known.any()) else outputs.sum() * 0

    train_data = encoding.rows(table)
    return Task(
        model=build_model(**encoding.shape),
        train_data=train_data,
        test_data=encoding.rows(Table(parameters.getTestData())).with_unknown_labels(),
        loss=known_cross_entropy if target.labels else squares,
        metrics={"accuracy": accuracy} if target.labels else {"mae": error},
        serving={"task": encoding.task, "labels": list(target.labels), "encoding": encoding.to_json()},
        collate=train_data.collate,
    )


def predict(kind: type[RowEncoding], build_model: Callable[..., nn.Module]) -> None:
    """The whole inference program: predict the column for every row of a CSV file, as the command line says."""
    arguments = inference_helper.parse_arguments("CSV file with a header, or folder of a split")

    serving = read_serving(arguments.model)
    served: Any = make(serving, SimpleNamespace(build_model=build_model))
    if not isinstance(served.encoding, kind):
        raise UnusableError(f"--model: its serving.json is of a model for {served.task}")
    target, table = served.encoding.target, Table(arguments.input_dir)
    truth: Any = target.truth(table) if arguments.validate else None
    outputs = outputs_of(Predictor(served, arguments.model), table)
    file = arguments.output_dir / arguments.output_file
    if not target.labels:
        inference_helper.writeVectorResult(file, table.names(), outputs.tolist(), ground_truth=truth)
        return
    inference_helper.writeClassificationResult(
        file,
        table.names(),
        outputs.tolist(),
        label_file=target.labels,
        ground_truth=truth,
        prob_thresh=arguments.prob_thresh,
    )


def outputs_of(model: Predictor, table: Table) -> Tensor:
    """Probabilities of labels, or numbers, for all rows of the table [rows, outputs]; ValueError names a wrong row."""
    served: Any = model.served
    names = [column.name for column in table.columns]
    found = []
    for start in range(0, len(table), BATCH_SIZE):
        numbers = range(start, min(start + BATCH_SIZE, len(table)))
        encoded = served.encode([Item(str(number), dict(zip(names, table[number], strict=True))) for number in numbers])
        for number, reason in encoded.errors.items():
            raise ValueError(f"{table.at(int(number))}: {reason}")
        found.append(model(encoded.inputs)["OUTPUT__0"])
    return torch.cat(found)
