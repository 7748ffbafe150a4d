"""A torch dataset over an LMDB environment of Caffe `Datum` records, as dataset imports write it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

# LMDB allows one environment a path and process, and none may cross a fork.
_environments: dict[str, lmdb.Environment] = {}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Datum:
    """One record: uint8 pixels in CHW order (BGR when there are three channels) and the label's index."""

    channels: int
    height: int
    width: int
    data: bytes
    label: int
    encoded: bool = False

    @classmethod
    def parse(cls, record: bytes) -> Datum:
        """Decode a serialized Caffe `Datum`; ValueError when it is not one."""
        fields: dict[int, Any] = {}
        position = 0
        while position < len(record):
            key, position = _read_varint(record, position)
            number, wire_type = key >> 3, key & 7
            if wire_type == _VARINT:
                fields[number], position = _read_varint(record, position)
            elif wire_type == _BYTES:
                length, position = _read_varint(record, position)
                fields[number] = record[position : position + length]
                position += length
            elif wire_type in (_FIXED32, _FIXED64):
                position += 4 if wire_type == _FIXED32 else 8
            else:
                raise ValueError(f"not a Datum record: wire type {wire_type}")
        if position != len(record):
            raise ValueError("not a Datum record: it is cut short")
        return cls(
            channels=fields.get(1, 0),
            height=fields.get(2, 0),
            width=fields.get(3, 0),
            data=fields.get(4, b""),
            label=fields.get(5, 0),
            encoded=bool(fields.get(7, 0)),
        )

    def image(self) -> Image.Image:
        """The record as a PIL image, mode L or RGB."""
        if self.encoded:
            import io

            return Image.open(io.BytesIO(self.data))
        pixels = np.frombuffer(self.data, np.uint8).reshape(self.channels, self.height, self.width)
        if self.channels == 1:
            return Image.fromarray(pixels[0])
        return Image.fromarray(np.ascontiguousarray(pixels[::-1].transpose(1, 2, 0)))


class LmdbDataset(Dataset[tuple[torch.Tensor, int]]):
    """Map-style dataset of (float32 CHW tensor, label index).

    `preprocess` turns a PIL image into the float32 CHW array the model takes. The environment is opened on first use in
    each process, so the dataset may be handed to DataLoader workers by fork or spawn.
    """

    def __init__(self, path: str | Path, preprocess: Callable[[Image.Image], np.ndarray]) -> None:
        self.path = Path(path)
        self.preprocess = preprocess
        with self._open().begin() as transaction, transaction.cursor() as cursor:
            self.keys = list(cursor.iternext(keys=True, values=False))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        datum = self.datum(index)
        return torch.from_numpy(self.preprocess(datum.image())), datum.label

    def datum(self, index: int) -> Datum:
        """The stored record."""
        with self._open().begin() as transaction:
            record = transaction.get(self.keys[index])
        if record is None:
            raise KeyError(f"{self.path}: record {self.keys[index]!r} has gone")
        return Datum.parse(record)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the first record (an import makes all alike)."""
        first = self.datum(0)
        return first.channels, first.height, first.width

    def _open(self) -> lmdb.Environment:
        return _open_environment(str(self.path.resolve()))


class ShardedBatches(Sampler[list[int]]):
    """This rank's part of every global batch of one epoch, in an order that depends only on seed and epoch.

    The last batch is filled from the beginning of the order, so that all ranks always take equally many samples.
    `start` skips that many global batches: a resumed epoch continues with the samples it has not seen.
    """

    def __init__(
        self, samples: int, global_batch: int, rank: int, world_size: int, *, seed: int, epoch: int = 0, start: int = 0
    ) -> None:
        self.samples, self.global_batch = samples, global_batch
        self.rank, self.world_size = rank, world_size
        self.seed, self.epoch, self.start = seed, epoch, start

    @staticmethod
    def per_epoch(samples: int, global_batch: int) -> int:
        """Global batches in an epoch."""
        return -(-samples // global_batch)

    def __len__(self) -> int:
        return self.per_epoch(self.samples, self.global_batch) - self.start

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.samples)
        batches = self.per_epoch(self.samples, self.global_batch)
        order = np.resize(order, batches * self.global_batch)
        for batch in range(self.start, batches):
            whole = order[batch * self.global_batch : (batch + 1) * self.global_batch]
            yield whole[self.rank :: self.world_size].tolist()


def read_labels(records: str | Path) -> list[str]:
    """The class names of the dataset whose records lie at `records`; the index is the label."""
    text = (Path(records).parent / "labels.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


def _read_varint(buffer: Sequence[int], position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(buffer) or shift > 63:
            raise ValueError("not a Datum record: it is cut short")
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _open_environment(path: str) -> lmdb.Environment:
    if path not in _environments:
        _environments[path] = lmdb.open(
            path, readonly=True, lock=False, readahead=False, create=False, max_spare_txns=4
        )
    return _environments[path]


def _leave_environments() -> None:
    for environment in _environments.values():
        environment.close()
    _environments.clear()


os.register_at_fork(after_in_child=_leave_environments)
