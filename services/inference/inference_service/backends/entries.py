"""The files of an entry of Triton's model repository that all backends write alike."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from dlmesh_sdk.served import Facts, Tensor
from servicekit.archives import ArchiveLimits
from servicekit.plain_folders import copy_plain_folder

from inference_service.backends.base import SERVING_FILE, ExportError, Source, read_facts
from inference_service.triton.probes import PARAMETER, probe_of

MAX_BATCH_SIZE = 64
# Beside the runners that they are imported by.
MODULES = ("bytes_tensors.py", "model_room.py", "served_runner.py")
# Of a folder that a training has left.
LIMITS = ArchiveLimits(size_bytes=64 * 1024**3, members=100_000)
# A queue of 256 requests: a model that hangs leaves room at the gateway for requests to others.
# KIND_AUTO is one instance on each GPU where there are GPUs, else one on the CPU.
CONFIG = """\
name: {name}
backend: "python"
max_batch_size: {max_batch_size}
input [ {inputs} ]
output [ {outputs} ]
dynamic_batching {{ max_queue_delay_microseconds: 0 default_queue_policy {{ max_queue_size: 256 }} }}
instance_group [{{ count: 1 kind: KIND_AUTO }}]
parameters {{ key: {probe_key} value {{ string_value: {probe} }} }}
"""
ITEM = '{ name: "ITEM" data_type: TYPE_STRING dims: [ 1 ] optional: true }'
RESULT = '{ name: "RESULT" data_type: TYPE_STRING dims: [ 1 ] }'


def write_served(source: Source, entry: Path, runner: Path, weights: str) -> None:
    """The whole entry of a model that `dlmesh_sdk.served` knows: `runner` becomes its model.py."""
    facts = read_facts(source.checkpoints)
    write_program(source, entry / "1" / "bundle", [weights])
    copy_runner(runner, MODULES, entry / "1")
    entry.joinpath("labels.txt").write_text(
        "".join(f"{line}\n" for line in (" ".join(label.splitlines()) for label in facts.labels)), encoding="utf-8"
    )
    inputs = [*(_tensor(each, "optional: true") for each in facts.inputs), ITEM]
    write_config(
        entry, source.name, inputs, [*(_output(each, facts) for each in facts.outputs), RESULT], probe_of(facts)
    )


def copy_runner(runner: Path, modules: Sequence[str], version: Path) -> None:
    """Make `runner` the model.py of a version, with these modules beside it."""
    shutil.copy2(runner, version / "model.py")
    for module in modules:
        shutil.copy2(runner.with_name(module), version / module)


def write_config(entry: Path, name: str, inputs: Sequence[str], outputs: Sequence[str], probe: str) -> None:
    """Write config.pbtxt with inputs and outputs in its own words."""
    config = CONFIG.format(
        name=json.dumps(name),
        max_batch_size=MAX_BATCH_SIZE,
        inputs=", ".join(inputs),
        outputs=", ".join(outputs),
        probe_key=json.dumps(PARAMETER),
        probe=json.dumps(probe),
    )
    (entry / "config.pbtxt").write_text(config, encoding="utf-8")


def write_program(source: Source, bundle: Path, files: Sequence[str]) -> None:
    """Copy the program, serving.json and these files of the checkpoints into the new folder `bundle`."""
    copy_code(source, bundle)
    for name in (*files, SERVING_FILE):
        try:
            (bundle / name).unlink(missing_ok=True)
        except OSError as error:
            raise ExportError(f"the code has a folder {name}, where a file of the training belongs") from error
        copy_file(source.checkpoints, name, bundle / name)


def copy_code(source: Source, target: Path) -> None:
    """Copy the program's folder to the new folder `target`; ExportError, ServiceError naming what is no plain file."""
    if source.code.is_symlink():
        raise ExportError("the training's folder of code is a link")
    target.parent.mkdir(parents=True, exist_ok=True)
    field = f"code of training {source.code.parent.name}"
    copy_plain_folder(source.code, target, LIMITS, field, left_out=("__pycache__", ".git"))


def copy_file(folder: Path, name: str, target: Path) -> None:
    """Copy a file that a program has left; ExportError unless it is a plain file, or a link to one beside it: what else
    a link leads to is not the model's to publish."""
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ExportError(f"the training's folder of checkpoints cannot be read: {error.strerror}") from error
    try:
        with contextlib.suppress(OSError):
            beside = os.readlink(name, dir_fd=place)
            name = beside if "/" not in beside else name
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, dir_fd=place), "rb") as reader, target.open("xb") as writer:
            if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
                raise ExportError(f"{name} of the training is not a plain file")
            shutil.copyfileobj(reader, writer, 1024 * 1024)
            writer.flush()
            # The rename that follows must not outlive the content when the power fails.
            os.fsync(writer.fileno())
    except OSError as error:
        raise ExportError(f"{name} of the training is not a plain file that can be read: {error.strerror}") from error
    finally:
        os.close(place)


def _output(tensor: Tensor, facts: Facts) -> str:
    return _tensor(tensor, 'label_filename: "labels.txt"' if facts.probabilities else "")


def _tensor(tensor: Tensor, more: str) -> str:
    dims = ", ".join(map(str, tensor.shape))
    ragged = "allow_ragged_batch: true " if tensor.is_ragged else ""
    return f'{{ name: "{tensor.name}" data_type: TYPE_{tensor.datatype} dims: [ {dims} ] {ragged}{more} }}'
