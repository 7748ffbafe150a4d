"""What a served model is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Unreadable:
    """In the place of a sample that could not be taken from its file."""

    reason: str


@dataclass(frozen=True)
class Item:
    """One sample, not decoded yet: `Path` or bytes of a picture, a row by its columns, a text, or Unreadable."""

    sample_id: str
    value: Any


@dataclass(frozen=True)
class Encoded:
    """A batch of samples as arrays.

    `inputs` have a row for each sample that could be read, in their order; without such a sample they are empty.
    `errors` say by sample id why the others could not. `sizes` are height and width of the pictures in their files, one
    for each row.
    """

    sample_ids: tuple[str, ...]
    inputs: Mapping[str, np.ndarray[Any, Any]]
    errors: Mapping[str, str] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def readable(self) -> tuple[str, ...]:
        """Sample ids of the rows of `inputs`."""
        return tuple(name for name in self.sample_ids if name not in self.errors)


@dataclass(frozen=True)
class Tensor:
    """An input or output as Triton's configuration describes it, without the batch; -1 is any number.

    `datatype` is FP32, FP64 or INT64. Where requests of one batch may differ in shape it `is_ragged`.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    is_ragged: bool = False


@dataclass(frozen=True)
class Facts:
    """What serving.json alone says of a model; `probabilities` is true when the rows of OUTPUT__0 add up to 1."""

    task: str
    labels: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    probabilities: bool


class Served(ABC):
    """One task. A model that is served for it has `serving` (serving.json) and `program`, its model.py.

    Contract: `encode` and `results` are deterministic, import torch only where the program does, and never raise for
    what a stranger may have sent: that is the error of its sample. `results` raises ValueError when the outputs are not
    of this batch. A result is `{"sampleId", "error"}`, or has `"scores": [{"index", "label", "prob"}, ...]`, the most
    probable first and none below the threshold - those of detection with `"bbox": [xmin, ymin, xmax, ymax]` in pixels
    of the picture's file, the far edges exclusive - or `"vector": [...]`. Both may be called by several threads; the
    program's own `preprocess` is called by one at a time.
    """

    task: ClassVar[str]
    # What serving.json must have.
    needs: ClassVar[tuple[str, ...]]

    def __init__(self, serving: Mapping[str, Any], program: Any) -> None:
        self.serving, self.program = serving, program
        self.labels: list[str] = [str(label) for label in serving.get("labels") or ()]

    @classmethod
    @abstractmethod
    def facts(cls, serving: Mapping[str, Any]) -> Facts:
        """The tensors; ValueError, KeyError or TypeError when serving.json has not what it `needs`."""

    @abstractmethod
    def items(self, file: Path, name: str) -> Iterator[Item]:
        """The samples of an uploaded file that was called `name`: itself, or `name:N` for its rows or lines from 0."""

    @abstractmethod
    def item(self, content: bytes, sample_id: str = "") -> Item:
        """The sample of a request: an encoded picture, a row as a JSON object, or a text."""

    @abstractmethod
    def encode(self, items: Sequence[Item]) -> Encoded:
        """Read and preprocess; ValueError when they are not of one shape."""

    def encode_alike(self, items: Sequence[Item]) -> list[Encoded]:
        """The same in batches of one shape each, so that no sample depends on what it came with. Each item is in one of
        them; at least one batch."""
        return [self.encode(items)]

    def check(self, inputs: Mapping[str, Any]) -> None:  # noqa: B027  pixels may be anything
        """ValueError for arrays or tensors that `encode` never makes and that would break more than their own answer:
        an index beyond a table of weights ends all work of a GPU's process."""

    @abstractmethod
    def build_model(self) -> Any:
        """The torch module, with the weights it was built with."""

    @abstractmethod
    def forward(self, module: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Torch tensors by output name of torch tensors by input name, on the module's device and back on the CPU.

        The module is in evaluation mode and gradients are off.
        """

    def results(
        self, encoded: Encoded, outputs: Mapping[str, np.ndarray[Any, Any]], threshold: float = 0.0
    ) -> list[dict[str, Any]]:
        """A result for each of `encoded.sample_ids`, in their order."""
        # Not at the top: the inference service describes models, and has no use for numpy in that.
        import numpy as np

        rows: Any = outputs["OUTPUT__0"] if encoded.readable else ()
        if len(rows) != len(encoded.readable):
            raise ValueError(f"{len(rows)} rows of outputs for {len(encoded.readable)} samples")
        found: dict[str, dict[str, Any]] = {}
        for position, (name, row) in enumerate(zip(encoded.readable, rows, strict=True)):
            if not np.isfinite(row).all():
                found[name] = {"error": "the model answered numbers that are not finite"}
                continue
            size = encoded.sizes[position] if encoded.sizes else (0, 0)
            try:
                found[name] = self.result(np.asarray(row), size, threshold)
            except (ValueError, IndexError) as error:
                found[name] = {"error": f"the model's answer is none for its task: {error}"}
        found |= {name: {"error": reason} for name, reason in encoded.errors.items()}
        return [{"sampleId": name, **found[name]} for name in encoded.sample_ids]

    @abstractmethod
    def result(self, output: np.ndarray[Any, Any], size: tuple[int, int], threshold: float) -> dict[str, Any]:
        """The result of one sample from its row of OUTPUT__0; `size` is that of its picture."""

    def compare(self, first: Sequence[float], second: Sequence[float]) -> tuple[float, bool]:
        """Distance of two vectors and whether their pictures are similar; ValueError if that is not the task."""
        raise ValueError(f"a model for {self.task} does not compare pictures")


def scores_of(probabilities: np.ndarray[Any, Any], labels: Sequence[str], threshold: float) -> dict[str, Any]:
    """The labels that reach the threshold, the most probable first."""
    if len(probabilities) != len(labels):
        raise ValueError(f"{len(probabilities)} outputs for {len(labels)} labels")
    best = sorted(range(len(labels)), key=lambda index: -probabilities[index])
    return {
        "scores": [
            {"index": index, "label": labels[index], "prob": float(probabilities[index])}
            for index in best
            if probabilities[index] >= threshold
        ]
    }
