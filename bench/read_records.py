"""Reads one epoch of our records after another has warmed the page cache; prints its seconds."""

import sys
import time

import numpy as np
from dlmesh_sdk.record_datasets import open_records
from dlmesh_sdk.sharded_batches import ShardedBatches
from torch.utils.data import DataLoader


def to_input(image):
    """Float32 [channels, height, width] from 0 to 1."""
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 255


def main(path: str) -> None:
    records = open_records(path, to_input)
    for epoch in range(2):
        batches = ShardedBatches(len(records), 64, 0, 1, seed=0, epoch=epoch)
        started = time.perf_counter()
        read = sum(len(labels) for _, labels in DataLoader(records, batch_sampler=batches, num_workers=2))
        seconds = time.perf_counter() - started
    assert read >= len(records)
    print(seconds * len(records) / read)


if __name__ == "__main__":
    main(sys.argv[1])
