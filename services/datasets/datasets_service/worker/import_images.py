"""`python -m datasets_service.worker.import_images SPEC.json`: class folders of images to LMDB records.

Everything is written to a folder of this attempt and appears by one rename, so a kill at any point leaves nothing that
looks finished; the next attempt starts again, or finds the work published and only reports it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from workerkit import Reporter

from datasets_service.domain.import_spec import ImportSpec
from datasets_service.worker.class_folders import class_names, images_below
from datasets_service.worker.datum import encode_datum
from datasets_service.worker.pixels import PixelOptions, UnreadableImageError, read_pixels
from datasets_service.worker.records import RecordWriter
from datasets_service.worker.splitting import hold_out, in_random_order

# One block is decoded, written and committed at a time: memory holds a block, whatever the size of the source.
BLOCK_IMAGES = 256
BLOCK_BYTES = 64 * 1024 * 1024
PARALLEL_FROM_IMAGES = 2000
MAX_UNREADABLE_PERCENT = 5
UNREADABLE_SHOWN = 10
MAX_KEY_NAME_BYTES = 480

Progress = Callable[[int, int], None]


class ImportRefusedError(Exception):
    """The source cannot become a dataset; the message is for its owner."""


@dataclass(frozen=True)
class Plan:
    """`splits` maps a split to (label index, path relative to `folders[split]`), in record order."""

    labels: list[str]
    folders: Mapping[str, Path]
    splits: Mapping[str, list[tuple[int, str]]]

    @property
    def total(self) -> int:
        return sum(map(len, self.splits.values()))


@dataclass
class Tally:
    """What was left out so far."""

    total: int
    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, path: str, reason: str) -> None:
        """Count an unreadable image; refuses as soon as there are too many."""
        self.count += 1
        if len(self.named) < UNREADABLE_SHOWN:
            self.named.append(path)
        print(f"left out {path}: {reason}", file=sys.stderr)
        if self.count * 100 > self.total * MAX_UNREADABLE_PERCENT:
            raise ImportRefusedError(
                f"more than {MAX_UNREADABLE_PERCENT}% of {self.total} images could not be read: "
                + ", ".join(self.named)
            )


def import_images(spec: ImportSpec, attempt: int, progress: Progress) -> dict[str, Any]:
    """Import and publish; the content of dataset.json. ImportRefusedError when the source will not do."""
    target = Path(spec.target)
    if (target / "dataset.json").exists():
        return _read_json(target / "dataset.json")
    staging = Path(spec.staging)
    for earlier in staging.glob("attempt-*"):
        shutil.rmtree(earlier, ignore_errors=True)
    folder = staging / f"attempt-{attempt}"
    folder.mkdir(parents=True)
    plan = make_plan(spec)
    description = _write_records(spec, plan, folder, progress)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in plan.labels), encoding="utf-8")
    description["size_bytes"] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    (folder / "dataset.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    return _publish(folder, target)


def make_plan(spec: ImportSpec) -> Plan:
    """Find the images and decide on their splits."""
    data_roots = [Path(root) for root in spec.data_roots]
    folders = {split: Path(source) for split, source in spec.sources.items()}
    found = {
        split: {label: list(images_below(folder / label, data_roots)) for label in class_names(folder, data_roots)}
        for split, folder in folders.items()
    }
    labels = sorted(found["train"])
    if len(labels) < 2:
        raise ImportRefusedError(f"{folders['train']} has {len(labels)} folders with images; at least 2 are needed")
    percentages = {"val": spec.validation_percentage, "test": spec.test_percentage}
    parts = hold_out(
        found.pop("train"),
        {split: percentage for split, percentage in percentages.items() if percentage and split not in found},
        spec.seed,
    )
    for split, classes in found.items():
        if unknown := sorted(classes.keys() - set(labels)):
            raise ImportRefusedError(f"{folders[split]} has classes that training has not: {', '.join(unknown[:10])}")
        parts[split] = classes
    splits = {}
    for split in ("train", "val", "test"):
        records = [
            (index, f"{label}/{path}")
            for index, label in enumerate(labels)
            for path in parts.get(split, {}).get(label, [])
        ]
        if records:
            splits[split] = in_random_order(records, spec.seed)
    return Plan(labels, {split: folders.get(split, folders["train"]) for split in splits}, splits)


def _write_records(spec: ImportSpec, plan: Plan, folder: Path, progress: Progress) -> dict[str, Any]:
    options = PixelOptions(spec.color_mode, spec.width, spec.height, spec.resize_mode)
    shape = (spec.color_mode.channels, spec.height, spec.width)
    block_images = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // int(np.prod(shape))))
    digest = hashlib.sha256(json.dumps([plan.labels, spec.color_mode, *shape, spec.resize_mode]).encode())
    mean = np.zeros(shape, np.float64)
    tally, done = Tally(plan.total), 0
    splits: dict[str, Any] = {}
    progress(0, plan.total)
    with _decoder(plan.total, options) as decode:
        for split, records in plan.splits.items():
            writer, counts = RecordWriter(folder / split), [0] * len(plan.labels)
            digest.update(f"split {split}\n".encode())
            for start in range(0, len(records), block_images):
                block = records[start : start + block_images]
                batch = []
                for (label, path), pixels in zip(block, decode(plan.folders[split], block), strict=True):
                    if isinstance(pixels, str):
                        tally.add(path, pixels)
                        continue
                    key = b"%08d_" % sum(counts) + os.fsencode(path)[-MAX_KEY_NAME_BYTES:]
                    batch.append((key, encode_datum(pixels, label)))
                    digest.update(b"%d " % len(key) + key + b"%d\n" % label)
                    digest.update(pixels.tobytes())
                    counts[label] += 1
                    if split == "train":
                        mean += pixels
                writer.write(batch)
                done += len(block)
                progress(done, plan.total)
            writer.close()
            splits[split] = {
                "path": str(Path(spec.target) / split),
                "count": sum(counts),
                "labels": dict(zip(plan.labels, counts, strict=True)),
            }
    if empty := [label for label, count in splits["train"]["labels"].items() if not count]:
        raise ImportRefusedError(f"no image of these classes could be read: {', '.join(empty[:10])}")
    np.save(folder / "mean.npy", (mean / splits["train"]["count"]).astype(np.float32))
    return {
        "name": spec.name,
        "uid": spec.uid,
        "content_hash": digest.hexdigest(),
        "type": "IMAGEFORCLASSIFICATION",
        "backend": "LMDB",
        "splits": splits,
        "image": {"width": spec.width, "height": spec.height, "channels": shape[0]},
        "labels": plan.labels,
        "mean_file": str(Path(spec.target) / "mean.npy"),
        "unreadable_count": tally.count,
        "unreadable": tally.named,
    }


Decode = Callable[[Path, Sequence[tuple[int, str]]], Iterator[np.ndarray | str]]


@contextmanager
def _decoder(total: int, options: PixelOptions) -> Iterator[Decode]:
    """Gives a function that decodes a block in order: pixels, or why an image could not be read."""

    def tasks(folder: Path, block: Sequence[tuple[int, str]]) -> list[tuple[str, PixelOptions]]:
        return [(f"{folder}/{path}", options) for _, path in block]

    processes = os.cpu_count() or 1
    if total <= PARALLEL_FROM_IMAGES or processes == 1:
        yield lambda folder, block: map(_decode, tasks(folder, block))
        return
    # Not forked: the reporter has a thread. A decoder that crashes breaks the pool instead of hanging it.
    with ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_die_with_parent
    ) as pool:
        yield lambda folder, block: pool.map(_decode, tasks(folder, block), chunksize=16)


def _decode(task: tuple[str, PixelOptions]) -> np.ndarray | str:
    try:
        return read_pixels(*task)
    except UnreadableImageError as error:
        return str(error)


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _publish(folder: Path, target: Path) -> dict[str, Any]:
    """Make the folder durable, then visible."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(target)
    except OSError:
        # Only an attempt that was thought dead can have been faster; its records are the same.
        if not (target / "dataset.json").exists():
            raise
    _sync(target.parent)
    return _read_json(target / "dataset.json")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def main(arguments: Sequence[str]) -> int:
    """The job: 0 when the dataset is published, 1 when its source was refused."""
    spec = ImportSpec.read(Path(arguments[0]))
    with Reporter.from_environment() as reporter:
        try:
            description = import_images(
                spec,
                int(os.environ.get("DLMESH_JOB_ATTEMPT", "1")),
                lambda done, total: reporter.progress(done, total, "import"),
            )
        except ImportRefusedError as refusal:
            print(refusal, file=sys.stderr)
            reporter.result({"refused": str(refusal)})
            return 1
        reporter.result({key: description[key] for key in ("uid", "content_hash", "size_bytes")})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
