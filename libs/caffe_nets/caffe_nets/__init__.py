"""Nets and solvers in Caffe's prototxt form, on PyTorch and DeepSpeed.

`train` and `infer` are what a training and a validation call; `build_model` and `preprocess` in `serving` are what a
served model needs. Everything that a folder has wrong is a `CaffeError` that names the layer.
"""

from __future__ import annotations

from pathlib import Path

from caffe_nets.schema import CaffeError

__all__ = ["CaffeError", "infer", "train"]


def train(folder: str | Path, train_dir: str | Path, weights: str = "") -> None:
    """Run one rank of a training of the prototxt files in `folder`; see `caffe_nets.training`."""
    from caffe_nets.training import train as run

    run(Path(folder), Path(train_dir), weights)


def infer(
    folder: str | Path,
    model: str | Path,
    input_dir: str | Path,
    output_dir: str | Path,
    output_file: str,
    threshold: float | str = 0.0,
    validate: bool = True,
    label_file: str = "",
) -> None:
    """Classify the records or pictures in `input_dir`; see `caffe_nets.inference`."""
    from caffe_nets.inference import infer as run

    run(Path(folder), Path(model), Path(input_dir), Path(output_dir) / output_file, threshold, validate, label_file)
