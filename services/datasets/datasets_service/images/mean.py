"""The mean image of a dataset: as numpy and as Caffe keep it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dlmesh.datasets.v1 import records_pb2
from google.protobuf.message import DecodeError

from datasets_service.importers.base import ImportRefusedError, ImportWork

MAX_MEAN_BYTES = 512 * 1024 * 1024


def write_mean(work: ImportWork, computed: np.ndarray) -> None:
    """mean.npy and mean.binaryproto, float32 [channels, height, width]: what the request gave, or `computed`."""
    mean = read_mean(Path(work.options.mean_file), computed.shape) if work.options.mean_file else computed
    np.save(work.records / "mean.npy", mean)
    channels, height, width = mean.shape
    message = records_pb2.MeanImage(num=1, channels=channels, height=height, width=width, data=mean.ravel())
    (work.records / "mean.binaryproto").write_bytes(message.SerializeToString())


def read_mean(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of `shape` from a .npy or .binaryproto file; a value a channel is one for all its pixels."""
    try:
        if file.stat().st_size > MAX_MEAN_BYTES:
            raise ImportRefusedError(f"meanfilepath: {file} is larger than {MAX_MEAN_BYTES} bytes")
        if file.suffix == ".npy":
            mean = np.load(file, allow_pickle=False).astype(np.float32)
        else:
            message = records_pb2.MeanImage.FromString(file.read_bytes())
            mean = np.array(message.data, np.float32).reshape(message.channels, message.height, message.width)
        if mean.ndim == 1:
            mean = mean[:, None, None]
        return np.ascontiguousarray(np.broadcast_to(mean, shape))
    except (OSError, ValueError, DecodeError, EOFError) as error:
        raise ImportRefusedError(
            f"meanfilepath: {file} is no mean of {' x '.join(map(str, shape))} (channels, height, width): {error}"
        ) from error
