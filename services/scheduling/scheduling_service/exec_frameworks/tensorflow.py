"""TensorFlow programs with one worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from scheduling_service.domain.exec_spec import ExecSpec
from scheduling_service.exec_frameworks.base import SingleWorker


class TensorFlow(SingleWorker):
    name = "tensorflow"
    description = "A TensorFlow program with one worker"
    examples = ("--exec-start tensorflow --model-main TF_mnist.py --batch-size 100",)
    backend = "TensorFlow"
    distributions: ClassVar[Sequence[str]] = ("tensorflow", "tensorflow-cpu")

    def run(self, spec: ExecSpec) -> None:
        from workerkit import tensorflow_cluster

        tensorflow_cluster.prepare()
        super().run(spec)
