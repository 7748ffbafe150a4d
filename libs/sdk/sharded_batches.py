"""Which rank takes which samples, in an order that can be continued."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class ShardedBatches(Sampler[list[int]]):
    """This rank's part of every global batch of one epoch, in an order that depends only on seed and epoch.

    The last batch is filled from the beginning of the order, so that all ranks always take equally many samples.
    `start` skips that many global batches: a resumed epoch continues with the samples it has not seen.
    """

    def __init__(
        self, samples: int, global_batch: int, rank: int, world_size: int, *, seed: int, epoch: int = 0, start: int = 0
    ) -> None:
        self.samples, self.global_batch = samples, global_batch
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
        batches = self.per_epoch(self.samples, self.global_batch)
        order = np.resize(order, batches * self.global_batch)
        for batch in range(self.start, batches):
            whole = order[batch * self.global_batch : (batch + 1) * self.global_batch]
            yield whole[self.rank :: self.world_size].tolist()
