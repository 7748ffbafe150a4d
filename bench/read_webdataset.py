"""Reads one epoch of WebDataset shards after another has warmed the page cache; prints its seconds."""

import sys
import time
from pathlib import Path

import webdataset
from torch.utils.data import DataLoader

SAMPLES = 4000


def main(path: str) -> None:
    shards = sorted(map(str, Path(path).glob("*.tar")))
    for _ in range(2):
        dataset = (
            webdataset.WebDataset(shards, shardshuffle=len(shards))
            .shuffle(1000)
            .decode("torchrgb")
            .to_tuple("jpg", "cls")
            .batched(64)
        )
        started = time.perf_counter()
        read = sum(len(labels) for _, labels in DataLoader(dataset, batch_size=None, num_workers=2))
        seconds = time.perf_counter() - started
    assert read == SAMPLES
    print(seconds)


if __name__ == "__main__":
    main(sys.argv[1])
