"""Weights in Caffe's own format and as state dicts; layers are matched by their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dlmesh_sdk.checkpoints import write_whole
from torch import Tensor

from caffe_nets.net import CaffeNet
from caffe_nets.schema import CaffeError, NetParameter, PackedBlob, read_binary

FINAL = "model_epoch_final.pth"
# What protobuf promises; ours goes beyond it, Caffe's own reader stops there.
MAX_CAFFEMODEL_BYTES = (2 << 30) - 1


def write_caffemodel(net: CaffeNet, state: Mapping[str, Tensor], file: Path, name: str = "") -> None:
    """Write the weights of the state dict `state` of `net` as a binary NetParameter, whole or not at all.

    CaffeError when there are more than such a file can hold.
    """
    message = NetParameter(name=name)
    steps = net.plans["train"].steps
    size = sum(state[key].numel() * 4 for step in steps for key in _keys(net, step.key))
    if size > MAX_CAFFEMODEL_BYTES:
        raise CaffeError(f"its weights are {size} bytes; Caffe reads no file of more than {MAX_CAFFEMODEL_BYTES}")
    for step in steps:
        layer = message.layer.add(name=step.name, type=step.type, bottom=step.bottoms, top=step.tops)
        for key in _keys(net, step.key):
            values = state[key].detach().float().cpu()
            written = layer.blobs.add()
            # As Python numbers they would take ten times the memory.
            data = values.numpy().astype("<f4", copy=False).tobytes()
            written.MergeFromString(PackedBlob(data=data).SerializeToString())
            written.shape.dim.extend(values.shape)
    write_whole(file, lambda draft: draft.write_bytes(message.SerializeToString()))


def load_initial(net: CaffeNet, location: str | Path) -> list[str]:
    """Load the .caffemodel or .pth at `location` (a file, or a folder that holds one); names of the layers loaded.

    Layers that the file does not have keep their beginning, layers that it has more are passed over. CaffeError when a
    shape differs (it names the layer) or when no layer matches.
    """
    file = _find(Path(location))
    given = _blobs_by_layer(file) if file.suffix == ".caffemodel" else _state_by_layer(net, file)
    loaded = []
    for name, module in _modules(net).items():
        blobs = given.get(name)
        if not blobs or not module.blob_names:
            continue
        if len(blobs) != len(module.blob_names):
            raise CaffeError(f"{file.name}: layer {name!r} has {len(blobs)} blobs; the net has {module.blob_names}")
        for blob, values in zip(module.blob_names, blobs, strict=True):
            own = module.blob(blob)
            # Old files pad shapes with ones in front.
            if list(_trimmed(values.shape)) != list(_trimmed(own.shape)):
                raise CaffeError(
                    f"{file.name}: layer {name!r}: {blob} is {list(values.shape)}; in the net it is {list(own.shape)}"
                )
            with torch.no_grad():
                own.copy_(values.reshape(own.shape))
        loaded.append(name)
    if not loaded:
        raise CaffeError(f"{file.name} has no weights for any layer of the net: {', '.join(_modules(net))}")
    return loaded


def _modules(net: CaffeNet) -> dict[str, Any]:
    return {step.name: net.layers[step.key] for step in net.plans["train"].steps}


def _find(path: Path) -> Path:
    if path.is_file():
        if path.suffix not in (".caffemodel", ".pth", ".pt"):
            raise CaffeError(f"weights {path.name!r}: allowed: a .caffemodel or a .pth file")
        return path
    if (path / FINAL).is_file():
        return path / FINAL
    files = [*path.glob("*.caffemodel"), *path.glob("*.pth")]
    if not files:
        raise CaffeError(f"weights: there is no .caffemodel and no .pth file in {path.name!r}")
    return max(files, key=lambda file: file.stat().st_mtime)


def _blobs_by_layer(file: Path) -> dict[str, list[Tensor]]:
    net = read_binary(file)
    # Published files are older than `layer`; in the oldest the layer lies inside its connection to others.
    old = [layer.layer if layer.HasField("layer") else layer for layer in net.layers]
    return {layer.name: [_values(blob) for blob in layer.blobs] for layer in [*old, *net.layer] if layer.blobs}


def _values(blob: Any) -> Tensor:
    shape = list(blob.shape.dim) if blob.HasField("shape") else [blob.num, blob.channels, blob.height, blob.width]
    values = torch.from_numpy(np.array(blob.data or blob.double_data, dtype=np.float32))
    try:
        return values.reshape(shape)
    except RuntimeError as error:
        raise CaffeError(f"a blob of shape {shape} has {values.numel()} values") from error


def _state_by_layer(net: CaffeNet, file: Path) -> dict[str, list[Tensor]]:
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile pickle makes torch raise
        raise CaffeError(f"{file.name} is not a state dict: {error}") from error
    if not isinstance(state, Mapping):
        raise CaffeError(f"{file.name} holds a {type(state).__name__}; allowed: a state dict, weights by their names")
    found = {}
    for step in net.plans["train"].steps:
        names = _keys(net, step.key)
        if names and all(isinstance(state.get(name), Tensor) for name in names):
            found[step.name] = [state[name] for name in names]
    return found


def _keys(net: CaffeNet, key: str) -> list[str]:
    """The names in a state dict of the blobs of the layer `key`, in Caffe's order."""
    module: Any = net.layers[key]
    return [f"layers.{key}.{blob}" for blob in module.blob_names]


def _trimmed(shape: torch.Size) -> tuple[int, ...]:
    sizes = list(shape)
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    return tuple(sizes)
