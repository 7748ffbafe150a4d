"""What a program was given and cannot use, now or later: data of another kind than it needs."""

from __future__ import annotations

from pathlib import Path

from recordkit.record_files import record_files


class UnusableError(ValueError):
    """Another attempt would end the same: a program that raises it ends with EX_DATAERR and this one line."""


class WrongDataError(UnusableError):
    """The data is of another kind than the program needs.

    `needed` says what cannot be found at `path`; what lies there is said, too.
    """

    def __init__(self, needed: str, path: str | Path) -> None:
        super().__init__(f"{needed}; {path} holds {kind_of_data(Path(path))}")


def kind_of_data(path: Path) -> str:
    """What lies at `path`, the split of a dataset, by its files alone."""
    if not path.exists():
        return "nothing"
    labels = "labels" if (path.parent / "labels.txt").is_file() else "no labels"
    if (path / "data.mdb").exists() or path.suffix == ".mdb":
        return f"records in LMDB with {labels}"
    if (path / "annotations.index").exists():
        return "images with boxes, as object detection has them"
    if (path / "data.csv").exists() or path.suffix == ".csv":
        return "a table in CSV"
    if path.is_dir() and record_files(path):
        return f"records in TFRecord files with {labels}"
    return "other files"
