"""Which rank takes which samples, in an order that can be continued."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from dlmesh_sdk.program_logs import say


def settled_batch(asked: int, samples: int, *, multiple_of: int = 1, tell: bool = False) -> int:
    """Samples of one optimizer step over all workers, where the batch size `asked` for is this.

    Never more than there are `samples`, rounded up to a multiple of `multiple_of`: the workers, where all have to take
    equally many. With `tell` a line says what is another number than was asked for.
    """
    at_hand = min(asked, max(1, samples))
    size = -(-at_hand // multiple_of) * multiple_of
    if tell and size != asked:
        words = [f"Batch size {asked}: a step takes {size} samples"]
        if at_hand < asked:
            words.append(f"there are {samples}")
        if at_hand < size:
            words.append(f"rounded up to a multiple of the {multiple_of} workers")
        say(", ".join(words))
    return size


class ShardedBatches(Sampler[list[int]]):
    """This rank's part of every global batch of one epoch, in an order that depends only on seed and epoch.

    The last batch is filled from the beginning of the order, so that all ranks always take equally many samples. A
    global batch is never larger than all samples, filled up to a multiple of the ranks.
    `start` skips that many global batches: a resumed epoch continues with the samples it has not seen.
    """

    def __init__(
        self, samples: int, global_batch: int, rank: int, world_size: int, *, seed: int, epoch: int = 0, start: int = 0
    ) -> None:
        self.samples = samples
        self.global_batch = min(global_batch, -(-max(1, samples) // world_size) * world_size)
        self.rank, self.world_size = rank, world_size
        self.seed, self.epoch, self.start = seed, epoch, start

    @staticmethod
    def per_epoch(samples: int, global_batch: int) -> int:
        """Global batches in an epoch."""
        return -(-samples // global_batch)

    def __len__(self) -> int:
        return self.per_epoch(self.samples, self.global_batch) - self.start

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.samples)
        for batch in range(self.start, self.per_epoch(self.samples, self.global_batch)):
            begin, end = batch * self.global_batch, (batch + 1) * self.global_batch
            yield order[np.arange(begin + self.rank, end, self.world_size) % self.samples].tolist()
