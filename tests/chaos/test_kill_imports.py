"""kill -9 in the middle of a large import: it goes on where it was, and nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import psutil
import pytest
from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform
from PIL import Image

pytestmark = [pytest.mark.platform, pytest.mark.slow]

IMAGES, CLASSES, DIFFERENT = 100_000, 10, 50
SECONDS = 240.0


@pytest.fixture(scope="module")
def many_images(platform: RunningPlatform) -> str:
    """A hundred thousand small images; a file has many names, so that they are made in seconds."""
    root = platform.home / "data" / "many"
    dice = np.random.default_rng(0)
    for label in range(CLASSES):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(IMAGES // CLASSES):
            file, original = folder / f"{number:05d}.png", folder / f"{number % DIFFERENT:05d}.png"
            if number < DIFFERENT:
                Image.fromarray(dice.integers(0, 256, (8, 8), np.uint8)).save(file)
            else:
                os.link(original, file)
    return "many"


def creation(name: str, source: str, backend: str) -> dict[str, Any]:
    return {
        "name": name,
        "dbbackend": backend,
        "datasourcetype": "IMAGEFORCLASSIFICATION",
        "sigid": "local",
        "shards": 4,
        "imagedetail": {
            "trainimagepath": source,
            "imagetype": "Gray",
            "width": 8,
            "height": 8,
            "valpercentage": 10,
            "testpercentage": 10,
        },
    }


def until(client: Client, name: str, reached: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not reached(detail := client.get(f"/datasets/{name}")):
        assert time.monotonic() < deadline, detail
        assert detail["status"] in ("SUBMITTED", "RUNNING"), detail
        time.sleep(0.1)
    return detail


def imported(detail: Any) -> int:
    words = detail["statusMessage"].split()
    return int(words[1]) if detail["status"] == "RUNNING" and words[:1] == ["imported"] else 0


def workers(name: str, client: Client) -> Iterator[psutil.Process]:
    """The import's process and those that decode for it."""
    uid = client.get(f"/datasets/{name}")["uid"]
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if f"/importing/{uid}/" in command and "datasets_service.worker.import_dataset" in command:
            yield process
            yield from process.children(recursive=True)


def test_a_large_import_survives_the_death_of_its_worker(
    platform: RunningPlatform, admin: Client, many_images: str
) -> None:
    admin.post("/datasets", creation("survivor", many_images, "LMDB"))
    before = imported(until(admin, "survivor", lambda detail: imported(detail) >= IMAGES // 4))
    victims = list(workers("survivor", admin))
    assert victims
    for process in victims:
        # Those that decode end with the one that they decode for.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    detail = until(admin, "survivor", lambda one: imported(one) > before or one["status"] == "FINISHED")
    if detail["status"] == "RUNNING":
        # Two seconds of work may be lost, not all of it.
        assert imported(detail) >= IMAGES // 8
    detail = until(admin, "survivor", lambda one: one["status"] == "FINISHED")
    counted: dict[str, int] = {}
    keys: set[bytes] = set()
    for split in ("train", "val", "test"):
        for label, count in detail[f"{split}labels"]:
            counted[label] = counted.get(label, 0) + int(count)
        with lmdb.open(detail[f"{split}path"], readonly=True, lock=False) as environment:
            with environment.begin() as transaction:
                found = [key.split(b"_", 1)[1] for key in transaction.cursor().iternext(values=False)]
        assert len(found) == sum(int(count) for _, count in detail[f"{split}labels"])
        keys.update(found)
    assert counted == {f"class{label}": IMAGES // CLASSES for label in range(CLASSES)}
    assert len(keys) == IMAGES
    assert not (platform.home / "datasets" / "importing" / detail["uid"]).exists()
    admin.delete("/datasets/survivor")


def test_a_large_import_that_is_stopped_leaves_nothing(
    platform: RunningPlatform, admin: Client, many_images: str
) -> None:
    folders = set(Path(platform.home / "datasets").rglob("*"))
    admin.post("/datasets", creation("stopped", many_images, "TFRecords"))
    until(admin, "stopped", lambda detail: imported(detail) >= IMAGES // 20)
    admin.put("/datasets/stopped/stop")
    assert until(admin, "stopped", lambda detail: detail["status"] == "STOPPED")["sparkappid"]
    assert list(workers("stopped", admin)) == []
    # What an earlier test deleted may have gone meanwhile.
    assert set(Path(platform.home / "datasets").rglob("*")) - folders == set()
    admin.delete("/datasets/stopped")
