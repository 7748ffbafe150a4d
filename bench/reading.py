"""Reading for training: our records and WebDataset's shards of the same images, through torch's DataLoader."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import lmdb
import numpy as np
from photographs import photograph
from recordkit.datum import encode_datum
from recordkit.example import ImageExample
from recordkit.tfrecord import frame
from report import Row

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".bench"
WEBDATASET = ("webdataset==1.0.2", "braceexpand==0.1.7")
IMAGES, SIDE, SHARDS = 4000, 224, 4
ROUNDS = 3


def measure_reading() -> list[Row]:
    """One epoch with two worker processes, batches of 64, decoded to float32; a process a run, alternating."""
    _install_peers()
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-") as name:
        folder = Path(name)
        _write(folder)
        rates: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for kind in ("tfrecords", "lmdb", "webdataset"):
                rates.setdefault(kind, []).append(_run(kind, folder))
    peer = statistics.median(rates["webdataset"])
    rows = []
    for kind, title in (("tfrecords", "TFRecords, the same JPEGs"), ("lmdb", "LMDB, the same pixels")):
        ours = statistics.median(rates[kind])
        rows.append(
            Row(
                f"reading {SIDE} x {SIDE} for training: {title}",
                f"{ours:.0f} samples/s",
                f"{peer:.0f} samples/s WebDataset",
                f"{ours / peer:.2f}",
                "at least 0.9",
                ours / peer >= 0.9,
            )
        )
    return rows


def _install_peers() -> None:
    """Beside the product's environment, never in it."""
    done = PEERS / "installed"
    if done.exists() and done.read_text() == str(WEBDATASET):
        return
    command = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade"]
    subprocess.check_call([sys.executable, *command, "--target", str(PEERS / "site"), *WEBDATASET])
    done.write_text(str(WEBDATASET))


def _write(folder: Path) -> None:
    """The same images as tar shards, TFRecords and LMDB; a hundred different ones, again and again."""
    dice = np.random.default_rng(0)
    images = []
    for _ in range(100):
        image, encoded = photograph(dice, SIDE, SIDE), BytesIO()
        image.save(encoded, "JPEG", quality=95)
        images.append((np.asarray(image), encoded.getvalue()))
    for kind in ("webdataset", "tfrecords", "lmdb"):
        (folder / kind).mkdir()
    for shard in range(SHARDS):
        with (
            tarfile.open(folder / "webdataset" / f"{shard:06d}.tar", "w") as tar,
            (folder / "tfrecords" / f"train-{shard:05d}-of-{SHARDS:05d}.tfrecord").open("wb") as records,
        ):
            for number in range(shard, IMAGES, SHARDS):
                _, encoded = images[number % len(images)]
                for suffix, content in (("jpg", encoded), ("cls", str(number % 10).encode())):
                    member = tarfile.TarInfo(f"{number:07d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))
                records.write(frame(ImageExample(encoded, "jpeg", SIDE, SIDE, 3, number % 10).serialize()))
    with lmdb.open(str(folder / "lmdb"), map_size=1 << 32) as environment, environment.begin(write=True) as transaction:
        for number in range(IMAGES):
            pixels, _ = images[number % len(images)]
            datum = encode_datum(np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1)), number % 10)
            transaction.put(b"%08d" % number, datum, append=True)


def _run(kind: str, folder: Path) -> float:
    script = "read_webdataset.py" if kind == "webdataset" else "read_records.py"
    environment = {**os.environ, "PYTHONPATH": str(PEERS / "site")} if kind == "webdataset" else None
    output = subprocess.check_output([sys.executable, str(HERE / script), str(folder / kind)], env=environment)
    return IMAGES / float(output.split()[-1])


if __name__ == "__main__":
    for row in measure_reading():
        print(*row.cells, sep=" | ")
