"""Image files of a folder, read as the records of a split are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dlmesh_sdk.record_datasets import Preprocess, RecordDataset, open_records
from dlmesh_sdk.served.pictures import open_picture

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


def list_images(folder: str | Path) -> list[Path]:
    """The image files in `folder`, by name; empty when there are none, as in a split of a dataset."""
    return sorted(file for file in Path(folder).glob("*") if file.suffix.lower() in SUFFIXES)


def open_images(path: str | Path, to_input: Preprocess) -> tuple[list[str], ImageFiles | RecordDataset]:
    """Names and samples of (input, target): the image files of a folder, whose targets are -1, or a split's records."""
    if files := list_images(path):
        return [file.name for file in files], ImageFiles(files, to_input)
    records = open_records(path, to_input)
    return records.names(), records


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files as (input, -1)."""

    def __init__(self, files: Sequence[Path], to_input: Preprocess) -> None:
        self.files, self.to_input = files, to_input

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            return torch.from_numpy(self.to_input(open_picture(self.files[index]))), -1
        except ValueError as error:
            raise ValueError(f"{self.files[index]}: {error}") from error
