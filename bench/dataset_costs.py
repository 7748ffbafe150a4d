"""What imports, reading for training and lists of datasets cost."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psutil
from datasets_service.domain.dataset import Dataset, ImportedRecords, InstanceGroup, Split, Status
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.domain.request import ImageOptions, ImportOptions
from datasets_service.domain.words import Backend, SourceType
from datasets_service.images.pixels import MAX_JPEG_PIXELS, MAX_OTHER_PIXELS, MAX_WEBP_PIXELS
from datasets_service.storage.repository import SqlStorage
from dlmesh_platform.client import API
from dlmesh_platform.launch import RunningPlatform, launch
from photographs import write_class_folders
from PIL import Image
from platform_costs import rest_call
from reading import measure_reading
from report import Row
from servicekit.database import Database
from servicekit.times import utc_now

IMAGES, WIDTH, HEIGHT, SIDE = 6000, 500, 375, 224
ROUNDS = 3
MANY, FEW = 10_000, 100


def measure_datasets() -> list[Row]:
    """Imports, reading, lists."""
    return [*measure_imports(), measure_largest_images(), *measure_reading(), *measure_lists()]


def measure_imports() -> list[Row]:
    """The import job on one core, on two, and the script everyone writes, alternating; files are in the page cache."""
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-") as name:
        folder = Path(name)
        write_class_folders(folder / "images", IMAGES, WIDTH, HEIGHT)
        seconds: dict[str, list[float]] = {}
        peak_bytes = 0

        def run(what: str, command: Sequence[str], cores: int) -> None:
            nonlocal peak_bytes
            elapsed, peak = _run(command, cores)
            seconds.setdefault(what, []).append(elapsed)
            if what != "plain":
                peak_bytes = max(peak_bytes, peak)

        for _ in range(ROUNDS):
            for backend in (Backend.LMDB, Backend.TFRECORDS):
                for cores in (1, 2):
                    run(f"{backend} {cores}", _import_command(folder, backend), cores)
            shutil.rmtree(folder / "plain", ignore_errors=True)
            script = str(Path(__file__).with_name("plain_import.py"))
            run("plain", [sys.executable, script, str(folder / "images"), str(folder / "plain"), str(SIDE)], 2)
    rates = {what: IMAGES / statistics.median(values) for what, values in seconds.items()}
    rows = []
    for backend in (Backend.LMDB, Backend.TFRECORDS):
        one, two = rates[f"{backend} 1"], rates[f"{backend} 2"]
        linear = two / (2 * one)
        rows.append(
            Row(
                f"import to {backend}, 1 to 2 cores",
                f"{two:.0f} images/s",
                f"2 x {one:.0f} images/s",
                f"{linear:.2f}",
                "at least 0.85",
                linear >= 0.85,
            )
        )
        gain = two / rates["plain"]
        rows.append(
            Row(
                f"import to {backend}, {WIDTH} x {HEIGHT} JPEG to {SIDE} x {SIDE}",
                f"{two:.0f} images/s",
                f"{rates['plain']:.0f} images/s Pillow loop",
                f"{gain:.2f}",
                "at least 1.5",
                gain >= 1.5,
            )
        )
    megabytes = peak_bytes / 1e6
    rows.append(
        Row(
            "memory of the largest process of an import (USS)",
            f"{megabytes:.0f} MB",
            "",
            "",
            "at most 512 MB",
            megabytes <= 512,
        )
    )
    return rows


def measure_largest_images() -> Row:
    """What decoding takes for images of as many pixels as are allowed, in the modes and formats that take most."""
    others, webps, jpegs = map(math.isqrt, (MAX_OTHER_PIXELS, MAX_WEBP_PIXELS, MAX_JPEG_PIXELS))
    most, worst = 0, ""
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-") as name:
        for suffix, mode, side in (
            ("png", "RGBA", others),
            ("png", "I;16", others),
            ("tiff", "RGB", others),
            ("webp", "RGBA", webps),
            ("jpeg", "RGB", jpegs),
            ("jpeg", "CMYK", others),
        ):
            file = Path(name) / f"largest.{suffix}"
            Image.new(mode, (side, side)).save(file, **({"progressive": True} if suffix == "jpeg" else {}))
            script = str(Path(__file__).with_name("decode_largest.py"))
            peak = int(subprocess.check_output([sys.executable, script, str(file)]))
            if peak > most:
                most, worst = peak, f"{mode} {suffix.upper()} of {side} x {side}"
    return Row(
        "memory of decoding the largest image that is allowed",
        f"{most / 1e6:.0f} MB ({worst})",
        "",
        "",
        "at most 512 MB",
        most <= 512e6,
    )


def _import_command(folder: Path, backend: Backend) -> list[str]:
    work = folder / "import"
    shutil.rmtree(work, ignore_errors=True)
    (work / "staging").mkdir(parents=True)
    spec = ImportSpec(
        uid=uuid4().hex,
        name="bench",
        source_type=SourceType.IMAGES_FOR_CLASSIFICATION,
        backend=backend,
        options=ImportOptions(
            shards=4,
            images=ImageOptions(train_path=str(folder / "images"), width=SIDE, height=SIDE, validation_percentage=10),
        ),
        data_roots=(str(folder),),
        staging=str(work / "staging"),
        target=str(work / "target"),
    )
    spec.write(work / "spec.json")
    return [sys.executable, "-m", "datasets_service.worker.import_dataset", str(work / "spec.json")]


def _run(command: Sequence[str], cores: int) -> tuple[float, int]:
    """Seconds from start to end on that many cores, and the most memory that one of its processes had for itself."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    started = time.perf_counter()
    process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, allowed))
    peak, ended = [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, ended))
    watcher.start()
    code = process.wait()
    elapsed = time.perf_counter() - started
    ended.set()
    watcher.join()
    if code:
        raise RuntimeError(f"{command} ended with {code}")
    return elapsed, peak[0]


def _watch(pid: int, peak: list[int], ended: threading.Event) -> None:
    while not ended.wait(0.5):
        try:
            root = psutil.Process(pid)
            for process in [root, *root.children(recursive=True)]:
                peak[0] = max(peak[0], process.memory_full_info().uss)
        except psutil.Error:
            continue


def measure_lists() -> list[Row]:
    """GET /datasets through Envoy with few and many datasets: time an item, and memory of the processes on the way."""
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-", ignore_cleanup_errors=True) as name:
        with launch(Path(name)) as platform:
            call = rest_call(platform, f"{API}/datasets")
            asyncio.run(_add_datasets(platform, FEW, first=0))
            few = _median_seconds(call, 50) / FEW
            before = _resident(platform)
            asyncio.run(_add_datasets(platform, MANY - FEW, first=FEW))
            many = _median_seconds(call, 10) / MANY
            grown = (_resident(platform) - before) / 1e6
    ratio = many / few
    return [
        Row(
            f"GET /datasets with {MANY} datasets, p50 an item",
            f"{many * 1e6:.0f} us",
            f"{few * 1e6:.0f} us with {FEW}",
            f"{ratio:.2f}",
            "at most 2",
            ratio <= 2,
        ),
        Row(
            f"memory that serving {MANY} adds to service and Envoy",
            f"{grown:.0f} MB",
            "",
            "",
            "at most 50 MB",
            grown <= 50,
        ),
    ]


def _median_seconds(call: Callable[[], None], count: int) -> float:
    call()
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _resident(platform: RunningPlatform) -> int:
    pids = platform.pids()
    return sum(psutil.Process(pids[name]).memory_info().rss for name in ("datasets", "envoy"))


async def _add_datasets(platform: RunningPlatform, count: int, first: int) -> None:
    """Finished datasets straight into the database: importing ten thousand is not what is measured."""
    database = Database(f"sqlite:///{platform.home}/db/datasets.sqlite", "datasets")
    labels = {f"class{number}": 100 for number in range(10)}
    pattern = Dataset(
        uid="",
        name="",
        owner="Admin",
        created_at=utc_now(),
        job_id="",
        source_type=SourceType.IMAGES_FOR_CLASSIFICATION,
        backend=Backend.LMDB,
        options=ImportOptions(images=ImageOptions(train_path="/data/images", width=224, height=224)),
        group=InstanceGroup(id="local", name="local"),
        status=Status.FINISHED,
        accepted=True,
        started_at=utc_now(),
        ended_at=utc_now(),
        records=ImportedRecords(
            content_hash="0" * 64,
            size_bytes=10**9,
            mean_file="/data/mean.npy",
            splits={split: Split(f"/data/{split}", 1000, labels) for split in ("train", "val", "test")},
        ),
    )
    async with SqlStorage(database).transaction() as datasets:
        for number in range(first, first + count):
            await datasets.add(replace(pattern, uid=uuid4().hex, job_id=uuid4().hex, name=f"dataset-{number:06d}"))
    await database.close()
