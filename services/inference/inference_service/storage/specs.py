"""What the prediction worker is told, and the names of the files that it and the service share."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from inference_service.domain.predictions import Sample

SPEC_FILE = "spec.json"
# One line for each file to predict: a JSON list of its id and its name in the input folder.
MANIFEST_FILE = "manifest.jsonl"
RESULT_FILE = "results.jsonl"
# At which bytes of the results lines 0, INDEX_STEP, 2 * INDEX_STEP, ... begin: unsigned, little endian, 8 bytes each.
INDEX_FILE = "results.index"
INDEX_STEP = 1000
INDEX_ENTRY_BYTES = 8
# Of a line of the results; longer ones fit no answer of the gateway together with their kin.
MAX_LINE_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class PredictionSpec:
    """`bundle` holds the model's program, `address_file` tells where Triton is.

    Names in the `manifest` are relative to `input_dir`, and what they lead to lies below one of `roots`. The worker
    makes the manifest when there is none.
    """

    model_name: str
    model_version: int
    bundle: str
    address_file: str
    input_dir: str
    roots: tuple[str, ...]
    manifest: str
    output_dir: str
    threshold: float
    max_image_bytes: int

    def write(self, file: Path) -> None:
        """Replace `file` whole."""
        write_json(file, asdict(self))

    @classmethod
    def read(cls, file: str | Path) -> PredictionSpec:
        """As written, also by a release that wrote the samples into the specification."""
        values = json.loads(Path(file).read_text())
        if "samples" in values:
            values = _from_samples(values, Path(file).parent)
        return cls(**values | {"roots": tuple(values["roots"])})


def write_manifest(file: Path, samples: Iterable[Sample]) -> None:
    """Write `file` whole, durable: a reader sees all names or no file. Needs memory for one name."""
    with _replacing(file) as stream:
        for sample in samples:
            stream.write(json.dumps([sample.id, sample.file]) + "\n")


def write_json(file: Path, value: Any) -> None:
    """A reader sees the old file or the new, never a piece."""
    with _replacing(file) as stream:
        json.dump(value, stream)


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[TextIO]:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with draft.open("w") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)


def _from_samples(old: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A job that was submitted before manifests were."""
    manifest = folder / MANIFEST_FILE
    if not manifest.exists():
        write_manifest(manifest, (Sample(**sample) for sample in old["samples"]))
    return {
        "model_name": old["model_name"],
        "model_version": 1,
        "bundle": old["bundle"],
        "address_file": old["address_file"],
        "input_dir": old["input_dir"],
        "roots": (old["input_dir"],),
        "manifest": str(manifest),
        "output_dir": str(Path(old["output_file"]).parent),
        "threshold": old["threshold"],
        "max_image_bytes": 2**63,
    }
