"""What the importers of classification images and of images with vectors share."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from servicekit.errors import invalid

from datasets_service.domain.request import DatasetRequest, ImageOptions, ImportOptions
from datasets_service.domain.words import ColorMode, ResizeMode, read_word
from datasets_service.importers.base import ImportRefusedError, ImportWork
from datasets_service.importers.fields import SPLITS, require_percentages, split_paths
from datasets_service.usecases.ports import Sources

MAX_PIXELS_A_SIDE = 4096
MEAN_SUFFIXES = (".npy", ".binaryproto")


def check_pixels(request: DatasetRequest) -> dict[str, object]:
    """Fields of `ImageOptions` that say what becomes of an image; 400 for what is impossible."""
    for field, pixels in (("imagedetail.width", request.width), ("imagedetail.height", request.height)):
        if not 1 <= pixels <= MAX_PIXELS_A_SIDE:
            raise invalid(field, pixels, f"1 to {MAX_PIXELS_A_SIDE} pixels")
    return {
        "color_mode": read_word(ColorMode, "imagedetail.imagetype", request.color_mode or ColorMode.COLOR),
        "resize_mode": read_word(
            ResizeMode, "imagedetail.resizetransformation", request.resize_mode or ResizeMode.SQUASH
        ),
        "width": request.width,
        "height": request.height,
    }


def check_mean(request: DatasetRequest, sources: Sources) -> str:
    """The mean file that was given."""
    if not request.mean_file:
        return ""
    file = sources.file("meanfilepath", request.mean_file)
    if file.suffix not in MEAN_SUFFIXES:
        raise invalid("meanfilepath", request.mean_file, f"a file that ends with {' or '.join(MEAN_SUFFIXES)}")
    return str(file)


def check_lists(request: DatasetRequest, sources: Sources) -> ImageOptions:
    """Options of a source that is text lists, and folders that their paths are below (those of the lists if none)."""
    texts = dict(zip(SPLITS, (request.train_list, request.validation_list, request.test_list), strict=True))
    lists = {
        split: sources.file(f"imagedetail.{split}textpath", text)
        for split, text in texts.items()
        if text or split == "train"
    }
    for split, (field, text) in split_paths(request).items():
        if text and split not in lists:
            raise invalid(field, text, f"nothing without imagedetail.{split}textpath when isusingtext is true")
    # Images of one list lie below one folder; training's serves the others when they name none.
    chosen = {split: sources.folder(*choice) for split, choice in split_paths(request).items() if choice[1]}
    folders = {split: str(chosen.get(split) or chosen.get("train") or file.parent) for split, file in lists.items()}
    label_list = sources.file("imagedetail.labeltextpath", request.label_list) if request.label_list else ""
    algorithm = require_percentages(request, [split for split in lists if split != "train"])
    return ImageOptions(
        uses_text_lists=True,
        train_list=str(lists["train"]),
        validation_list=str(lists.get("val", "")),
        test_list=str(lists.get("test", "")),
        label_list=str(label_list),
        train_path=folders["train"],
        validation_path=folders.get("val", ""),
        test_path=folders.get("test", ""),
        validation_percentage=request.validation_percentage,
        test_percentage=request.test_percentage,
        split_algorithm=str(algorithm),
        split_seed=request.split_seed,
        **check_pixels(request),  # type: ignore[arg-type]
    )


def lists_of(options: ImportOptions) -> dict[str, Path]:
    """The text lists by split."""
    images = options.images
    lists = zip(SPLITS, (images.train_list, images.validation_list, images.test_list), strict=True)
    return {split: Path(file) for split, file in lists if file}


def folders_of(options: ImportOptions) -> dict[str, str]:
    """Where the images of every split lie: what is held out of training lies in training's folder."""
    images = options.images
    folders = zip(SPLITS, (images.train_path, images.validation_path, images.test_path), strict=True)
    return {split: folder or images.train_path for split, folder in folders}


class ListedFiles:
    """Looks listed images up; none may leave the data roots, whether by its path or by a link."""

    def __init__(self, work: ImportWork) -> None:
        self._roots = [str(root) for root in work.data_roots]
        self._inside: dict[str, bool] = {}

    def look_up(self, file: Path, line: int, folder: str, path: str) -> tuple[int, int]:
        """(bytes, modification time in ns); bytes are -1 when there is no such file."""
        whole = os.path.join(folder, path)  # noqa: PTH118  a string for each of a million files
        try:
            # Folders are resolved once, not once an image.
            directory = os.path.dirname(whole)  # noqa: PTH120
            if directory not in self._inside:
                self._inside[directory] = self._is_inside(os.path.realpath(directory))
            found = os.lstat(whole)
            inside = self._inside[directory] and (not _is_link(found) or self._is_inside(os.path.realpath(whole)))
            if _is_link(found) and inside:
                found = os.stat(whole)  # noqa: PTH116
        except FileNotFoundError:
            found, inside = None, self._inside[directory]
        except (OSError, ValueError) as error:
            raise ImportRefusedError(f"{file}, line {line}: {path!r}: {error}") from error
        if not inside:
            raise ImportRefusedError(f"{file}, line {line}: {path!r} lies outside the data roots")
        if found is None:
            return -1, 0
        if not _is_file(found):
            raise ImportRefusedError(f"{file}, line {line}: {path!r} is not a file")
        return found.st_size, found.st_mtime_ns

    def _is_inside(self, path: str) -> bool:
        return any(path == root or path.startswith(f"{root}{os.sep}") for root in self._roots)


def _is_link(found: os.stat_result) -> bool:
    return stat.S_ISLNK(found.st_mode)


def _is_file(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode)
