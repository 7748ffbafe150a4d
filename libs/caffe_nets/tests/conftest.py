"""Digits as an imported dataset, and model directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from dlmesh.datasets.v1 import records_pb2
from recordkit.datum import encode_datum
from sklearn.datasets import load_digits


def write_digits(folder: Path, side: int = 28, channels: int = 1) -> Path:
    """scikit-learn's digits, `side` pixels square, as LMDB splits with labels.txt and their mean."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    places = np.arange(side) * 8 // side
    for split, indices in zip(("train", "val", "test"), np.split(order, [1200, 1500]), strict=True):
        (folder / split).mkdir(parents=True)
        with lmdb.open(str(folder / split), map_size=1 << 27) as environment, environment.begin(write=True) as writer:
            for number, index in enumerate(indices):
                pixels = (data.images[index] * 15.9).astype(np.uint8)[places][:, places]
                record = encode_datum(np.repeat(pixels[None], channels, 0), int(data.target[index]))
                writer.put(b"%08d_%d.png" % (number, index), record)
    mean = np.repeat((data.images[order[:1200]] * 15.9).mean(0)[places][:, places][None], channels, 0)
    message = records_pb2.MeanImage(num=1, channels=channels, height=side, width=side, data=mean.ravel())
    (folder / "mean.binaryproto").write_bytes(message.SerializeToString())
    (folder / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    return folder


def write_parameters(file: Path, data: Path, hyperparameter: dict[str, Any] | None = None, **more: Any) -> Path:
    """The file that DLMESH_PARAMETERS names."""
    splits = {split: str(data / split) for split in ("train", "val", "test")}
    file.write_text(json.dumps({"data": splits, "hyperparameter": hyperparameter or {}, **more}))
    return file


@pytest.fixture(scope="session")
def colour_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "data", 32, 3)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "data")


@pytest.fixture
def parameters(tmp_path: Path) -> Callable[..., Path]:
    """Makes the parameters of a run; what is no field of theirs is a hyperparameter."""

    def make(data: Path, **given: Any) -> Path:
        own = {name: given.pop(name) for name in ("batch_size", "checkpoint_interval_steps") if name in given}
        return write_parameters(tmp_path / "parameters.json", data, given, **own)

    return make
