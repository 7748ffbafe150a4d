"""The workers of one training: who I am, on which device, and what we agree on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import workerkit
from torch._C._distributed_c10d import HashStore

JOIN_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Gang:
    """One worker's view of the gang. Methods marked collective must be called by all workers together."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True for the worker that writes what is written once."""
        return self.rank == 0

    @property
    def stop_requested(self) -> bool:
        """True after this worker was asked to stop (SIGTERM)."""
        return workerkit.stop_requested()

    @property
    def loader_workers(self) -> int:
        """Processes that may prepare batches for this worker; 0 where every core is already computing."""
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return min(4, cores - 2) if self.device.type == "cuda" and cores > 2 else 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Collective: for each flag, whether it is true for any worker."""
        return self.vote(*flags)()

    def vote(self, *flags: bool) -> Callable[[], tuple[bool, ...]]:
        """Collective: what `any` would say, when what is returned is called; workers need not wait for it meanwhile.

        Call it every step: it also shows life.
        """
        workerkit.heartbeat()
        if self.world_size == 1:
            return lambda: flags
        # On the CPU also when training on a GPU: it must not wait for the device.
        votes = torch.tensor(flags, dtype=torch.int32)
        work = dist.all_reduce(votes, op=dist.ReduceOp.MAX, async_op=True)

        def result() -> tuple[bool, ...]:
            work.wait()
            return tuple(bool(vote) for vote in votes)

        return result

    def sum(self, *values: float) -> tuple[float, ...]:
        """Collective: for each value, its sum over the workers."""
        if self.world_size == 1:
            return values
        totals = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(totals)
        return tuple(totals.tolist())

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Collective: the floating ones become their means over the workers, in place; others stay what they are."""
        floating = [tensor for tensor in tensors if tensor.is_floating_point()]
        if self.world_size == 1 or not floating:
            return
        flat = torch.cat([tensor.detach().reshape(-1).to(self.device, torch.float32) for tensor in floating])
        dist.all_reduce(flat)
        with torch.no_grad():
            for tensor, part in zip(floating, flat.split([tensor.numel() for tensor in floating]), strict=True):
                tensor.copy_((part / self.world_size).view_as(tensor))

    def share(self, text: str) -> str:
        """Collective: the first worker's `text`."""
        if self.world_size == 1:
            return text
        box = [text]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Collective: returns when all workers have come."""
        self.any(False)

    def leave(self) -> None:
        """Release the process group; call it last."""
        if dist.is_initialized():
            dist.destroy_process_group()


def join(seed: int = 0, *, computes: bool = True) -> Gang:
    """Join the process group that the environment describes (alone when it describes none) and seed torch.

    Gloo on CPU, NCCL for tensors on a GPU. After this SIGTERM no longer ends the process: it sets `stop_requested`.
    Without `computes` torch only carries what workers tell each other (another framework has the devices): all on CPU.
    """
    for name, alone in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, alone)
    rank, local_rank, world_size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not computes:
        device, backend = torch.device("cpu"), "gloo"
    elif torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        from dlmesh_sdk import deepspeed_on_cpu

        deepspeed_on_cpu.install()
        device = torch.device("cpu")
        backend = "gloo"
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])))
    if not dist.is_initialized():
        if world_size == 1:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        elif "MASTER_ADDR" in os.environ:
            dist.init_process_group(backend, timeout=JOIN_TIMEOUT)
        else:
            raise RuntimeError(f"WORLD_SIZE is {world_size} but MASTER_ADDR is not set")
    torch.manual_seed(seed)
    workerkit.watch_for_stop()
    return Gang(rank, local_rank, world_size, device)
