"""Elastic PyTorch programs."""

from __future__ import annotations

from scheduling_service.exec_frameworks.base import ElasticWorkers


class EdtPyTorch(ElasticWorkers):
    """They are started again from their checkpoint in RESULT_DIR/model/train when their number changes."""

    name = "edtPyTorch"
    description = "A FabricModel program of PyTorch, whose number of workers changes while it runs"
    examples = ("--exec-start edtPyTorch --edt-options maxWorkers=4 --model-main elastic-main.py --epochs 10",)
    backend = "PyTorch"
    distributions = ("torch",)
    distribute_strategy = "FabricModel"
    is_warm = True
