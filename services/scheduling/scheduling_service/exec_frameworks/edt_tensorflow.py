"""Elastic TensorFlow and Keras programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from scheduling_service.domain.exec_spec import ExecSpec
from scheduling_service.exec_frameworks.base import ElasticWorkers


class EdtTensorFlow(ElasticWorkers):
    name = "edtTensorflow"
    description = "A FabricModel program of TensorFlow, whose number of workers changes while it runs"
    examples = ("--exec-start edtTensorflow --edt-options maxWorkers=2 --model-main elastic-main.py",)
    backend = "TensorFlow"
    distributions: ClassVar[Sequence[str]] = ("tensorflow", "tensorflow-cpu")
    distribute_strategy = "FabricModel"

    def run(self, spec: ExecSpec) -> None:
        from workerkit import tensorflow_cluster

        tensorflow_cluster.prepare()
        super().run(spec)


class EdtKeras(EdtTensorFlow):
    """As edtTensorflow: a compiled Keras model is what FabricModel takes there."""

    name = "edtKeras"
    description = "A FabricModel program over a compiled Keras model, whose number of workers changes while it runs"
    examples = ("--exec-start edtKeras --edt-options maxWorkers=2 --model-main elastic-main.py",)
    distributions: ClassVar[Sequence[str]] = ("keras",)
