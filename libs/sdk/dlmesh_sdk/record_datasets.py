"""Torch datasets over imported records: LMDB environments of Caffe's `Datum`, TFRecord files of `tf.train.Example`.

`open_records` opens whichever lies there. The datasets are map-style, so that any sampler may choose the order (see
`sharded_batches`), and may be handed to DataLoader workers by fork or spawn: files are opened on first use in each
process.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from recordkit.datum import Datum
from recordkit.example import ImageExample
from recordkit.lmdb_records import open_lmdb
from recordkit.record_files import record_files
from recordkit.record_names import distinct
from recordkit.tfrecord import TFRecordFile
from torch.utils.data import Dataset
from workerkit.heartbeat import heartbeat_of_the_only_rank

from dlmesh_sdk.wrong_data import WrongDataError

Preprocess = Callable[[Image.Image], np.ndarray]


class RecordDataset(Dataset[tuple[torch.Tensor, Any]]):
    """(float32 CHW tensor, label index), or (tensor, float32 vector) where records have vectors.

    `preprocess` turns a PIL image (mode L or RGB) into the float32 CHW array the model takes.
    """

    def __init__(self, path: str | Path, preprocess: Preprocess) -> None:
        self.path, self.preprocess = Path(path), preprocess

    @abstractmethod
    def __len__(self) -> int:
        """Records."""

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        """One sample; ValueError naming the record when it is damaged."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the first record (an import makes all alike)."""

    @abstractmethod
    def names(self) -> list[str]:
        """What each record was made from; all differ."""


def open_records(path: str | Path, preprocess: Preprocess) -> RecordDataset:
    """The records at `path`: a split's folder, an LMDB data file, or a TFRecord file; WrongDataError for all else."""
    folder = Path(path)
    if (folder / "data.mdb").exists() or folder.suffix == ".mdb":
        return LmdbDataset(folder, preprocess)
    if record_files(folder):
        return TFRecordDataset(folder, preprocess)
    raise WrongDataError(
        "records of images are needed, and this is neither an LMDB (data.mdb) nor TFRecord files", path
    )


def read_labels(records: str | Path) -> list[str]:
    """The class names of the dataset whose records lie at `records`, from labels.txt one folder above; the index is the
    label. WrongDataError when there are none: how many classes there are cannot be known from records."""
    file = Path(records).parent / "labels.txt"
    try:
        labels = [line for line in file.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise WrongDataError(f"{file} is needed, with the name of a label on every line ({error})", records) from error
    if not labels:
        raise WrongDataError(f"{file} is empty; it needs the name of a label on every line", records)
    return labels


class LmdbDataset(RecordDataset):
    """Records in the order of their keys. Pixels are taken from the mapped file without a copy on the way."""

    def __init__(self, path: str | Path, preprocess: Preprocess) -> None:
        super().__init__(path, preprocess)
        keys: list[bytes] = []
        with open_lmdb(self.path).begin() as transaction, transaction.cursor() as cursor:
            keys.extend(cursor.iternext(keys=True, values=False))
        # Two arrays, not a million objects: worker processes share their pages.
        self._keys = b"".join(keys)
        self._ends = np.cumsum([len(key) for key in keys], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        heartbeat_of_the_only_rank()
        key = self._key(index)
        with open_lmdb(self.path).begin(buffers=True) as transaction:
            record = transaction.get(key)
            if record is None:
                raise KeyError(f"{self.path}: record {key!r} has gone")
            try:
                # The record is memory of the transaction: nothing of it may outlive this block.
                datum = Datum.parse(record)
                return _sample(self.preprocess(datum.image()), datum.label, datum.vector)
            except (OSError, ValueError) as error:
                raise ValueError(f"{self.path}: record {key!r}: {error}") from error

    @property
    def shape(self) -> tuple[int, int, int]:
        with open_lmdb(self.path).begin(buffers=True) as transaction:
            datum = Datum.parse(transaction.get(self._key(0), b""))
            if datum.encoded:
                return _shape_of(datum.image())
            return datum.channels, datum.height, datum.width

    def names(self) -> list[str]:
        return [self._key(index).decode(errors="surrogateescape") for index in range(len(self))]

    def _key(self, index: int) -> bytes:
        end = self._ends[index]
        return self._keys[self._ends[index - 1] if index % len(self) else 0 : end]


class TFRecordDataset(RecordDataset):
    """Records of one file, or of all record files of a folder in the order of their names."""

    def __init__(self, path: str | Path, preprocess: Preprocess) -> None:
        super().__init__(path, preprocess)
        self._paths = record_files(self.path)
        self._files: dict[int, TFRecordFile] = {}
        self._ends = np.cumsum([len(self._file(number)) for number in range(len(self._paths))], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        heartbeat_of_the_only_rank()
        file, number = self._place(index)
        # A damaged file is named by its own error.
        record = file[number]
        try:
            example = ImageExample.parse(record)
            if example.label < 0 and not example.vector:
                raise ValueError("neither image/class/label nor image/vector")
            return _sample(self.preprocess(_decode(example)), example.label, example.vector)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file.path}: record {number}: {error}") from error

    @property
    def shape(self) -> tuple[int, int, int]:
        return _shape_of(_decode(self._example(0)))

    def names(self) -> list[str]:
        return distinct(self._example(index).filename for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file stays in its process.
        return {**self.__dict__, "_files": {}}

    def _example(self, index: int) -> ImageExample:
        file, number = self._place(index)
        return ImageExample.parse(file[number])

    def _place(self, index: int) -> tuple[TFRecordFile, int]:
        """The file that holds this record, and its number there."""
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._file(number), index - (int(self._ends[number - 1]) if number else 0)

    def _file(self, number: int) -> TFRecordFile:
        if number not in self._files:
            self._files[number] = TFRecordFile(self._paths[number])
        return self._files[number]


def _decode(example: ImageExample) -> Image.Image:
    if example.encoded[:3] == b"\xff\xd8\xff":
        pixels = simplejpeg.decode_jpeg(example.encoded, "GRAY" if example.channels == 1 else "RGB")
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return example.image()


def _shape_of(image: Image.Image) -> tuple[int, int, int]:
    return len(image.getbands()), image.height, image.width


def _sample(pixels: np.ndarray, label: int, vector: Sequence[float]) -> tuple[torch.Tensor, Any]:
    return torch.from_numpy(pixels), torch.tensor(vector, dtype=torch.float32) if vector else label
