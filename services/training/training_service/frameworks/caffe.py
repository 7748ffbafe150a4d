"""Caffe models: prototxt files instead of programs, trained on PyTorch and DeepSpeed by `caffe_nets`."""

from __future__ import annotations

import os

from workerkit.program import end_for_wrong_data

from training_service.domain.specs import TrainingSpec, ValidationSpec
from training_service.frameworks.base import Framework


class Caffe(Framework):
    """Weights are state dicts; the last ones are kept in Caffe's own format, too."""

    name = "Caffe"
    inference_program = ""
    weights = (r"model_epoch_final\.pth", r"model_epoch_\d+\.pth", r"[^.].*\.caffemodel")

    def train(self, spec: TrainingSpec) -> None:
        import caffe_nets

        os.chdir(spec.code)
        try:
            caffe_nets.train(spec.code, spec.train_dir, spec.weights)
        except ValueError as error:
            end_for_wrong_data(error)
            raise

    def infer(self, spec: ValidationSpec, output_file: str) -> None:
        import caffe_nets

        os.chdir(spec.code)
        try:
            caffe_nets.infer(
                spec.code,
                spec.model,
                spec.input_dir,
                spec.output_dir,
                output_file,
                threshold=spec.threshold,
                validate=True,
                label_file=spec.label_file,
            )
        except ValueError as error:
            end_for_wrong_data(error)
            raise
