"""PyTorch programs with one worker."""

from __future__ import annotations

from scheduling_service.exec_frameworks.base import SingleWorker


class PyTorch(SingleWorker):
    name = "PyTorch"
    description = "A PyTorch program with one worker"
    examples = (
        "--exec-start PyTorch --model-main pytorch_mnist.py --epochs 3",
        "--exec-start PyTorch --cs-datastore-meta type=fs,data_path=mnist --model-dir mnist --model-main main.py",
        "--exec-start PyTorch --workerDeviceType gpu --workerDeviceNum 2 --user-cmd -- torchrun --standalone main.py",
    )
    backend = "PyTorch"
    distributions = ("torch",)
    is_warm = True
