"""PyTorch programs with several workers, DeepSpeed among them."""

from __future__ import annotations

from scheduling_service.exec_frameworks.base import ManyWorkers


class DistPyTorch(ManyWorkers):
    """Ranks find each other by the usual variables of torch.distributed."""

    name = "distPyTorch"
    description = (
        "A PyTorch program with several workers, which start together and find each other by torch.distributed"
    )
    examples = (
        "--exec-start distPyTorch --numWorker 2 --model-main ddp.py --batch-size 200",
        "--exec-start distPyTorch --numWorker 4 --user-cmd -- torchrun --nproc-per-node 4 train.py --deepspeed ds.json",
    )
    backend = "PyTorch"
    distributions = ("torch",)
    distribute_strategy = "DistributedDataParallel"
    is_warm = True
