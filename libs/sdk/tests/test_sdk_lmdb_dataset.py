"""Records of an import come back as they were; every sample of an epoch is seen once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import lmdb
import numpy as np
import pytest
from lmdb_dataset import Datum, LmdbDataset, ShardedBatches, read_labels
from PIL import Image
from torch.utils.data import DataLoader


def varint(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def encode(pixels: np.ndarray, label: int) -> bytes:
    """A serialized Caffe Datum of CHW pixels."""
    sizes = zip((b"\x08", b"\x10", b"\x18"), pixels.shape, strict=True)
    head = b"".join(key + varint(size) for key, size in sizes)
    return head + b"\x22" + varint(pixels.size) + pixels.tobytes() + b"\x28" + varint(label)


def write_records(folder: Path, records: list[tuple[np.ndarray, int]]) -> Path:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for number, (pixels, label) in enumerate(records):
            transaction.put(b"%08d_%d.png" % (number, number), encode(pixels, label))
    return folder


def to_array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image, np.float32)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def test_grey_and_color_records(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    grey = generator.integers(0, 256, (1, 9, 7), np.uint8)
    color = generator.integers(0, 256, (3, 9, 7), np.uint8)
    dataset = LmdbDataset(write_records(tmp_path / "train", [(grey, 3), (color, 300)]), to_array)
    assert len(dataset) == 2
    assert dataset.shape == (1, 9, 7)
    first, second = dataset[0], dataset[1]
    assert (first[1], second[1]) == (3, 300)
    assert np.array_equal(first[0].numpy(), grey)
    # Stored BGR, read RGB.
    assert np.array_equal(second[0].numpy(), color[::-1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_worker_processes_open_their_own_environment(tmp_path: Path) -> None:
    records = [(np.full((1, 8, 8), number, np.uint8), number) for number in range(20)]
    dataset = LmdbDataset(write_records(tmp_path / "train", records), to_array)
    assert dataset[5][1] == 5
    labels = [label for _, batch in DataLoader(dataset, batch_size=4, num_workers=2) for label in batch.tolist()]
    assert labels == list(range(20))


@pytest.mark.parametrize("record", [b"\x08", b"\x22\x05ab", b"\x0b\x01", b"\xff" * 12])
def test_broken_record_is_refused(record: bytes) -> None:
    with pytest.raises(ValueError, match="not a Datum record"):
        Datum.parse(record)


def test_labels_lie_above_the_records(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    assert read_labels(tmp_path / "train") == ["cat", "dog"]


@pytest.mark.parametrize(("samples", "batch", "world"), [(100, 10, 2), (97, 12, 3), (5, 16, 2), (64, 64, 1)])
def test_workers_together_see_every_sample(samples: int, batch: int, world: int) -> None:
    shards = [list(ShardedBatches(samples, batch, rank, world, seed=7, epoch=1)) for rank in range(world)]
    assert {len(one) for shard in shards for one in shard} == {batch // world}
    seen = Counter(index for shard in shards for one in shard for index in one)
    assert set(seen) == set(range(samples))
    assert seen.total() == ShardedBatches.per_epoch(samples, batch) * batch


def test_order_depends_on_seed_and_epoch_only_and_resumes() -> None:
    whole = list(ShardedBatches(50, 10, 0, 1, seed=1, epoch=2))
    halves = [list(ShardedBatches(50, 10, rank, 2, seed=1, epoch=2)) for rank in (0, 1)]
    assert [sorted(batch) for batch in whole] == [sorted(a + b) for a, b in zip(*halves, strict=True)]
    assert list(ShardedBatches(50, 10, 0, 1, seed=1, epoch=2, start=3)) == whole[3:]
    assert list(ShardedBatches(50, 10, 0, 1, seed=1, epoch=3)) != whole
