"""Image files of a folder are read as the records of a split are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dlmesh_sdk.image_files import list_images, open_images
from PIL import Image


def brightness(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32)[None, :, :, 0]


def test_images_of_a_folder_come_by_name_without_targets(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), (7, 0, 0)).save(tmp_path / "b.png")
    Image.new("RGB", (4, 3), (9, 0, 0)).save(tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    assert [file.name for file in list_images(tmp_path)] == ["a.PNG", "b.png"]
    names, samples = open_images(tmp_path, brightness)
    assert names == ["a.PNG", "b.png"]
    (first, target), (second, _) = samples[0], samples[1]
    assert (first.shape, first.max(), second.max(), target) == ((1, 3, 4), 9.0, 7.0, -1)
    assert len(samples) == 2


def test_a_split_has_no_image_files(tmp_path: Path) -> None:
    (tmp_path / "part-00000.tfrecord").touch()
    assert list_images(tmp_path) == []
