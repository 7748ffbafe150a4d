"""What the prediction worker is told, and the file it writes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inference_service.domain.predictions import Sample, SampleResult, Score

RESULT_FILE = "results.json"


@dataclass(frozen=True)
class PredictionSpec:
    """`bundle` holds the model's program, `address_file` tells where Triton is."""

    model_name: str
    bundle: str
    address_file: str
    input_dir: str
    output_file: str
    threshold: float
    samples: tuple[Sample, ...]

    def write(self, file: Path) -> None:
        """Replace `file` whole."""
        write_json(file, asdict(self))

    @classmethod
    def read(cls, file: str | Path) -> PredictionSpec:
        """As written."""
        values = json.loads(Path(file).read_text())
        samples = tuple(Sample(**sample) for sample in values.pop("samples"))
        return cls(samples=samples, **values)


def write_results(file: Path, results: Sequence[SampleResult]) -> None:
    """Replace `file` whole."""
    write_json(file, [asdict(result) for result in results])


def read_results(file: Path) -> list[SampleResult]:
    """As written."""
    return [
        SampleResult(**{**row, "scores": tuple(Score(**score) for score in row["scores"])})
        for row in json.loads(file.read_text())
    ]


def write_json(file: Path, value: Any) -> None:
    """A reader sees the old file or the new, never a piece."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with draft.open("w") as stream:
        json.dump(value, stream)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
