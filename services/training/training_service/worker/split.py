"""What a validation knows of its split beforehand: the names of its samples and the labels of its dataset."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from recordkit.record_names import record_names

# Beside the records of object detection data, an image a line.
ANNOTATIONS = "annotations.jsonl"
# With a header; written by the import, which takes cells of up to so many characters.
TABLE, MAX_CELL_CHARACTERS = "data.csv", 1024 * 1024
MAX_LABEL_BYTES = 16 * 1024 * 1024


def sample_names(folder: Path, dataset_type: str = "") -> list[str] | None:
    """The samples of a split, in the order of its records; None for data whose form only its own programs know.

    Rows of a table are called by their numbers, from 0.
    """
    if dataset_type == "Other":
        return None
    if (folder / ANNOTATIONS).is_file():
        with (folder / ANNOTATIONS).open("rb") as lines:
            return [json.loads(line)["name"] for line in lines]
    table = folder if folder.name == TABLE else folder / TABLE
    if table.is_file():
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        with table.open(encoding="utf-8", newline="") as lines:
            rows = sum(1 for _ in csv.reader(lines))
        return [str(number) for number in range(rows - 1)]
    return record_names(folder)


def dataset_labels(file: Path) -> list[str]:
    """The classes of a dataset, a line each in the order of their indices; none when there is no such file."""
    if not file.is_file():
        return []
    with file.open("rb") as content:
        lines = content.read(MAX_LABEL_BYTES).decode("utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]
