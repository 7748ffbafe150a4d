"""Weights have their name when they are on the disk, whichever kind of training writes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dlmesh_sdk.checkpoints import Checkpoints
from dlmesh_sdk.fabric_training import ElasticRun, State
from dlmesh_sdk.gang import Gang


def native(folder: Path) -> Path:
    model = torch.nn.Linear(2, 1)
    written = Checkpoints(folder, Gang(0, 0, 1, torch.device("cpu")))
    written.write_weights(State(model, torch.optim.SGD(model.parameters(), 0.1)), "model_epoch_final.pth")
    return folder / "model_epoch_final.pth"


def elastic(folder: Path) -> Path:
    run = ElasticRun.__new__(ElasticRun)
    run.train_dir, run.worker = folder, torch.nn.Linear(2, 1)
    run.write_weights("model_epoch_final.pth")
    return folder / "model_epoch_final.pth"


def keras_model(folder: Path) -> Path:
    import keras
    from dlmesh_sdk.keras_training import write_weights

    write_weights(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), folder / "model_epoch_final.keras")
    return folder / "model_epoch_final.keras"


# Keras itself does what numpy will not have any more.
KERAS = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.parametrize("write", [native, elastic, pytest.param(keras_model, marks=KERAS)])
def test_weights_are_flushed_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path]
) -> None:
    happened: list[tuple[str, Any]] = []
    flush, rename = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        happened.append(("flushed", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        flush(descriptor)

    def replace(path: Path, target: Path) -> Path:
        happened.append(("renamed", path.name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    file = write(tmp_path)
    assert file.stat().st_size > 0
    draft = f".draft-{file.name}"
    assert happened == [("flushed", draft), ("renamed", draft), ("flushed", tmp_path.name)]
    assert not (tmp_path / draft).exists()
