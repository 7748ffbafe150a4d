"""The files of an entry of Triton's model repository that all backends write alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from dlmesh_sdk.served import Facts, Tensor

from inference_service.backends.base import SERVING_FILE, Source
from inference_service.triton.probes import PARAMETER

MAX_BATCH_SIZE = 64
# KIND_AUTO is one instance on each GPU where there are GPUs, else one on the CPU.
CONFIG = """\
name: {name}
backend: "python"
max_batch_size: {max_batch_size}
input [ {inputs} ]
output [ {outputs} ]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
instance_group [{{ count: 1 kind: KIND_AUTO }}]
parameters {{ key: {probe_key} value {{ string_value: {probe} }} }}
"""
ITEM = '{ name: "ITEM" data_type: TYPE_STRING dims: [ 1 ] optional: true }'
RESULT = '{ name: "RESULT" data_type: TYPE_STRING dims: [ 1 ] }'


def write_program(source: Source, bundle: Path, files: Sequence[str]) -> None:
    """Copy the program, serving.json and these files of the checkpoints into the new folder `bundle`."""
    # A link stays a link: what it points to is not the model's to publish.
    shutil.copytree(source.code, bundle, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in (*files, SERVING_FILE):
        # What the code folder has in that place, a link out of it perhaps, is not written through.
        (bundle / name).unlink(missing_ok=True)
        shutil.copy2(source.checkpoints / name, bundle / name)


def write_description(entry: Path, name: str, facts: Facts, probe: str, max_batch_size: int = MAX_BATCH_SIZE) -> None:
    """Write config.pbtxt, with ITEM and RESULT beside the tensors, and labels.txt."""
    entry.joinpath("labels.txt").write_text(
        "".join(f"{line}\n" for line in (" ".join(label.splitlines()) for label in facts.labels)), encoding="utf-8"
    )
    entry.joinpath("config.pbtxt").write_text(
        CONFIG.format(
            name=json.dumps(name),
            max_batch_size=max_batch_size,
            inputs=", ".join([*(_tensor(each, "optional: true") for each in facts.inputs), ITEM]),
            outputs=", ".join([*(_output(each, facts) for each in facts.outputs), RESULT]),
            probe_key=json.dumps(PARAMETER),
            probe=json.dumps(probe),
        )
    )


def _output(tensor: Tensor, facts: Facts) -> str:
    return _tensor(tensor, 'label_filename: "labels.txt"' if facts.probabilities else "")


def _tensor(tensor: Tensor, more: str) -> str:
    dims = ", ".join(map(str, tensor.shape))
    ragged = "allow_ragged_batch: true " if tensor.is_ragged else ""
    return f'{{ name: "{tensor.name}" data_type: TYPE_{tensor.datatype} dims: [ {dims} ] {ragged}{more} }}'
