"""Records of an import come back as they were, whoever reads them; every sample of an epoch is seen once."""

from __future__ import annotations

import functools
import io
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from dlmesh_sdk.record_datasets import LmdbDataset, RecordDataset, TFRecordDataset, open_records, read_labels
from dlmesh_sdk.sharded_batches import ShardedBatches, settled_batch
from PIL import Image
from recordkit.datum import encode_datum
from recordkit.example import ImageExample
from recordkit.tfrecord import frame
from torch.utils.data import DataLoader

Records = list[tuple[np.ndarray, int]]


def write_lmdb(folder: Path, records: Records, vectors: bool = False) -> Path:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for number, (pixels, label) in enumerate(records):
            record = encode_datum(pixels, label, (label / 2, -1.0) if vectors else ())
            transaction.put(b"%08d_%d.png" % (number, number), record)
    return folder


def write_tfrecords(folder: Path, records: Records, vectors: bool = False, image_format: str = "PNG") -> Path:
    """Two shards."""
    folder.mkdir(parents=True)
    for shard in range(2):
        with (folder / f"train-{shard:05d}-of-00002.tfrecord").open("wb") as file:
            for number, (pixels, label) in enumerate(records):
                if (number * 2 // len(records)) != shard:
                    continue
                encoded = io.BytesIO()
                # Stored BGR in LMDB, RGB here.
                plain = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels[::-1].transpose(1, 2, 0))
                Image.fromarray(plain).save(encoded, image_format)
                example = ImageExample(
                    encoded.getvalue(),
                    image_format.lower(),
                    *plain.shape[:2],
                    len(pixels),
                    -1 if vectors else label,
                    str(label),
                    f"{number}.png",
                    (label / 2, -1.0) if vectors else (),
                )
                file.write(frame(example.serialize()))
    return folder


WRITERS = pytest.mark.parametrize("write", [write_lmdb, write_tfrecords])


def to_array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image, np.float32)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def numbered(count: int) -> Records:
    return [(np.full((1, 8, 8), number, np.uint8), number) for number in range(count)]


@WRITERS
def test_grey_and_color_records(tmp_path: Path, write) -> None:
    generator = np.random.default_rng(0)
    grey = generator.integers(0, 256, (1, 9, 7), np.uint8)
    color = generator.integers(0, 256, (3, 9, 7), np.uint8)
    dataset = open_records(write(tmp_path / "train", [(grey, 3), (color, 300)]), to_array)
    assert len(dataset) == 2
    assert dataset.shape == (1, 9, 7)
    first, second = dataset[0], dataset[-1]
    assert (first[1], second[1]) == (3, 300)
    assert np.array_equal(first[0].numpy(), grey)
    assert np.array_equal(second[0].numpy(), color[::-1])
    assert [name[-5:] for name in dataset.names()] == ["0.png", "1.png"]
    with pytest.raises(IndexError):
        dataset[2]


def test_jpeg_records(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8), (3, 64, 64)).copy()
    folder = write_tfrecords(tmp_path / "train", [(smooth, 1), (smooth[:1], 0)], image_format="JPEG")
    dataset = TFRecordDataset(folder, to_array)
    assert np.abs(dataset[0][0].numpy() - smooth).mean() < 3
    assert dataset[1][0].shape == (1, 64, 64)


@WRITERS
def test_vectors(tmp_path: Path, write) -> None:
    dataset = open_records(write(tmp_path / "train", numbered(4), vectors=True), to_array)
    images, vectors = next(iter(DataLoader(dataset, batch_size=4)))
    assert images.shape == (4, 1, 8, 8)
    assert torch.equal(vectors, torch.tensor([[number / 2, -1.0] for number in range(4)]))


@WRITERS
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes_open_their_own_files(tmp_path: Path, write, start: str) -> None:
    # A function that other processes can import.
    preprocess = functools.partial(np.array, dtype=np.float32, ndmin=3)
    dataset: RecordDataset = open_records(write(tmp_path / "train", numbered(20)), preprocess)
    assert dataset[5][1] == 5
    batches = ShardedBatches(20, 8, 0, 1, seed=3, start=1)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=2, multiprocessing_context=start)
    seen = [labels.tolist() for _, labels in loader]
    assert seen == list(batches)
    assert len(pickle.dumps(dataset)) < 4000


@pytest.mark.parametrize("content", [b"\x08", b"\x22\x05ab", b"\x0b\x01", b"\xff" * 12])
def test_a_broken_datum_is_named(tmp_path: Path, content: bytes) -> None:
    folder = write_lmdb(tmp_path / "train", numbered(1))
    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"00000001_broken", content)
    with pytest.raises(ValueError, match=r"train: record b'00000001_broken': not a Datum record"):
        LmdbDataset(folder, to_array)[1]


def test_a_broken_tfrecord_is_named(tmp_path: Path) -> None:
    folder = write_tfrecords(tmp_path / "train", numbered(4))
    file = sorted(folder.iterdir())[1]
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)
    dataset = open_records(folder, to_array)
    assert dataset[2][1] == 2
    with pytest.raises(ValueError, match=rf"{file.name}: the record at byte \d+ does not match its checksum"):
        dataset[3]


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (b"\xff" * 9, "not a tf.train.Example"),
        (ImageExample(b"", "png", 1, 1, 1, 0).serialize(), "without image/encoded"),
        (ImageExample(b"\xff\xd8\xff\xe0", "jpeg", 1, 1, 1, 0).serialize(), ""),
        (ImageExample(b"\x89PNG", "png", 1, 1, 1, 0).serialize(), "not an image"),
        (ImageExample(b"x", "png", 1, 1, 1).serialize(), "neither image/class/label nor image/vector"),
    ],
)
def test_a_record_that_is_no_sample_is_named(tmp_path: Path, record: bytes, what: str) -> None:
    folder = write_tfrecords(tmp_path / "train", numbered(4))
    with sorted(folder.iterdir())[1].open("ab") as file:
        file.write(frame(record))
    with pytest.raises(ValueError, match=rf"train-00001-of-00002.tfrecord: record 2: .*{what}"):
        open_records(folder, to_array)[4]


def test_what_holds_no_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither an LMDB \(data.mdb\) nor TFRecord files"):
        open_records(tmp_path, to_array)


def test_labels_lie_above_the_records(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    assert read_labels(tmp_path / "train") == ["cat", "dog"]
    (tmp_path / "labels.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"labels.txt is empty"):
        read_labels(tmp_path / "train")
    (tmp_path / "labels.txt").unlink()
    with pytest.raises(ValueError, match=r"labels.txt is needed, with the name of a label on every line"):
        read_labels(tmp_path / "train")


@pytest.mark.parametrize(("samples", "batch", "world"), [(100, 10, 2), (97, 12, 3), (5, 6, 2), (64, 64, 1)])
def test_workers_together_see_every_sample(samples: int, batch: int, world: int) -> None:
    shards = [list(ShardedBatches(samples, batch, rank, world, seed=7, epoch=1)) for rank in range(world)]
    assert {len(one) for shard in shards for one in shard} == {batch // world}
    seen = Counter(index for shard in shards for one in shard for index in one)
    assert set(seen) == set(range(samples))
    assert seen.total() == ShardedBatches.per_epoch(samples, batch) * batch


@pytest.mark.parametrize(
    ("asked", "samples", "workers", "size", "said"),
    [
        (64, 1437, 2, 64, ""),
        (5, 1437, 2, 6, "Batch size 5: a step takes 6 samples, rounded up to a multiple of the 2 workers\n"),
        (2**31 - 1, 1437, 1, 1437, f"Batch size {2**31 - 1}: a step takes 1437 samples, there are 1437\n"),
        (
            2**31 - 1,
            1437,
            2,
            1438,
            f"Batch size {2**31 - 1}: a step takes 1438 samples, there are 1437, rounded up to a multiple of the 2 "
            "workers\n",
        ),
        (1438, 1437, 2, 1438, ""),
        (8, 0, 1, 1, "Batch size 8: a step takes 1 samples, there are 0\n"),
    ],
)
def test_a_step_takes_no_more_than_there_is(
    capsys: pytest.CaptureFixture[str], asked: int, samples: int, workers: int, size: int, said: str
) -> None:
    assert settled_batch(asked, samples, multiple_of=workers, tell=True) == size
    assert settled_batch(asked, samples, multiple_of=workers) == size
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("samples", [3, 100_000])
def test_a_batch_beyond_the_samples_takes_each_once_and_no_more_memory(samples: int) -> None:
    batches = ShardedBatches(samples, 2**31 - 1, 0, 2, seed=1)
    tracemalloc.start()
    mine = list(batches)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(batches) == 1
    assert [len(one) for one in mine] == [-(-samples // 2)]
    assert used < 100 * samples + 10_000
    others = list(ShardedBatches(samples, 2**31 - 1, 1, 2, seed=1))
    assert set(mine[0]) | set(others[0]) == set(range(samples))


def test_order_depends_on_seed_and_epoch_only_and_resumes() -> None:
    whole = list(ShardedBatches(50, 10, 0, 1, seed=1, epoch=2))
    halves = [list(ShardedBatches(50, 10, rank, 2, seed=1, epoch=2)) for rank in (0, 1)]
    assert [sorted(batch) for batch in whole] == [sorted(a + b) for a, b in zip(*halves, strict=True)]
    assert list(ShardedBatches(50, 10, 0, 1, seed=1, epoch=2, start=3)) == whole[3:]
    assert list(ShardedBatches(50, 10, 0, 1, seed=1, epoch=3)) != whole


def test_samples_of_an_epoch_are_the_same_whatever_the_workers_do() -> None:
    """R11: 1 -> 2 -> 1 workers within an epoch: the samples of each step stay what they are."""
    samples, batch = 50, 8
    steps = ShardedBatches.per_epoch(samples, batch)
    fixed = [sorted(one) for one in ShardedBatches(samples, batch, 0, 1, seed=5, epoch=1)]
    resized = []
    for world, start, stop in ((1, 0, 2), (2, 2, 5), (1, 5, steps)):
        parts = [ShardedBatches(samples, batch, rank, world, seed=5, epoch=1, start=start) for rank in range(world)]
        whole = [sorted(index for part in step for index in part) for step in zip(*parts, strict=True)]
        resized += whole[: stop - start]
    assert resized == fixed
    assert {len(step) for step in fixed} == {batch}
    assert set().union(*fixed) == set(range(samples))
