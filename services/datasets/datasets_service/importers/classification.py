"""IMAGEFORCLASSIFICATION: class folders or text lists of images to LMDB or TFRecords."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from servicekit.errors import invalid

from datasets_service.domain.request import DatasetRequest, ImageOptions, ImportOptions
from datasets_service.domain.splitting import SplitMethod
from datasets_service.domain.words import Backend, SourceType, read_backend
from datasets_service.images import text_lists
from datasets_service.images.class_folders import class_folders, has_image, images_below, split_folders, split_in_name
from datasets_service.importers.base import Description, Importer, ImportRefusedError, ImportWork
from datasets_service.importers.fields import require_percentages, split_paths
from datasets_service.importers.images import (
    ListedFiles,
    check_lists,
    check_mean,
    check_pixels,
    folders_of,
    lists_of,
)
from datasets_service.usecases.ports import Sources

if TYPE_CHECKING:
    from datasets_service.images.manifest import FoundImage

MAX_LABELS = text_lists.MAX_LABELS


class ClassificationImporter(Importer):
    """A label for every image."""

    def check(self, request: DatasetRequest, sources: Sources) -> ImportOptions:
        images = check_lists(request, sources) if request.uses_text_lists else _check_folders(request, sources)
        mean_file = check_mean(request, sources)
        if read_backend(SourceType.IMAGES_FOR_CLASSIFICATION, request.backend) is not Backend.TFRECORDS:
            return ImportOptions(mean_file=mean_file, images=images)
        # The contract has these for TFRecords only; clients send them with every request.
        return ImportOptions(
            mean_file=mean_file, shards=max(1, request.shards), by_class=request.by_class, images=images
        )

    def run(self, work: ImportWork) -> Description:
        from datasets_service.images.image_import import import_images

        def find() -> tuple[list[str], Iterator[FoundImage]]:
            labels, found = _listed(work) if work.options.images.uses_text_lists else _in_folders(work)
            if not 2 <= len(labels) <= MAX_LABELS:
                raise ImportRefusedError(f"the source has {len(labels)} labels; 2 to {MAX_LABELS} are possible")
            return labels, found

        return import_images(work, find, folders_of(work.options))


def _check_folders(request: DatasetRequest, sources: Sources) -> ImageOptions:
    lists = ("train", request.train_list), ("val", request.validation_list), ("test", request.test_list)
    for split, text in (*lists, ("label", request.label_list)):
        if text:
            raise invalid(f"imagedetail.{split}textpath", text, "nothing unless isusingtext is true")
    paths = split_paths(request)
    algorithm = require_percentages(request, [split for split in ("val", "test") if paths[split][1]])
    pixels = check_pixels(request)
    folders = {split: sources.folder(*choice) for split, choice in paths.items() if choice[1] or split == "train"}
    train = folders["train"]
    field, text = paths["train"]
    by_name = algorithm.method is SplitMethod.BY_NAME
    roots = [train / name for name in split_folders(train).values()] if by_name else []
    classes = sorted({name for root in roots or [train] for name in class_folders(root)})
    if not 2 <= len(classes) <= MAX_LABELS:
        raise invalid(
            field, text, f"a folder with a folder of images for each class, 2 at least; {len(classes)} were found"
        )
    for name in classes:
        if not name.isprintable():
            raise invalid(field, name, "class folders whose names are printable text")
        if not any((root / name).is_dir() and has_image(root / name, sources.roots) for root in roots or [train]):
            raise invalid(field, text, f"a folder whose class folders all hold images; {name!r} holds none")
    for split in ("val", "test"):
        if split in folders:
            _require_known_classes(*paths[split], folders[split], classes)
    return ImageOptions(
        train_path=str(train),
        validation_path=str(folders.get("val", "")),
        test_path=str(folders.get("test", "")),
        validation_percentage=request.validation_percentage,
        test_percentage=request.test_percentage,
        split_algorithm=str(algorithm),
        split_seed=request.split_seed,
        **pixels,  # type: ignore[arg-type]
    )


def _require_known_classes(field: str, text: str, folder: Path, classes: list[str]) -> None:
    found = class_folders(folder)
    if not found or (unknown := sorted(set(found) - set(classes))):
        what = f"these are unknown to training: {', '.join(unknown[:10])}" if found else "none was found"
        raise invalid(field, text, f"a folder with a folder of images for each class; {what}")


def _in_folders(work: ImportWork) -> tuple[list[str], Iterator[FoundImage]]:
    """Labels and images of class folders."""
    images = work.options.images
    sources = {"train": images.train_path, "val": images.validation_path, "test": images.test_path}
    roots = [(split, Path(source), "") for split, source in sources.items() if source]
    by_name = images.split.method is SplitMethod.BY_NAME
    if by_name and (folders := split_folders(Path(images.train_path))):
        # Their images are named from the folder that the request names.
        roots = [(split, Path(images.train_path, name), f"{name}/") for split, name in folders.items()]
    labels = sorted({label for _, root, _ in roots for label in class_folders(root)})
    numbers = {label: number for number, label in enumerate(labels)}
    return labels, _walk(work, roots, numbers, by_name=by_name and len(roots) == 1)


def _walk(
    work: ImportWork, roots: list[tuple[str, Path, str]], numbers: dict[str, int], *, by_name: bool
) -> Iterator[FoundImage]:
    from datasets_service.images.manifest import FoundImage

    for split, root, prefix in roots:
        for label in class_folders(root):
            try:
                for path, found in images_below(root / label, work.data_roots):
                    yield FoundImage(
                        split_in_name(path) if by_name else split,
                        numbers[label],
                        f"{prefix}{label}/{path}",
                        found.st_size,
                        found.st_mtime_ns,
                    )
            except OSError as error:
                raise ImportRefusedError(f"{error.filename} cannot be read: {error.strerror}") from error


def _listed(work: ImportWork) -> tuple[list[str], Iterator[FoundImage]]:
    """Labels and images of text lists."""
    options, lists = work.options, lists_of(work.options)
    if options.images.label_list:
        labels = text_lists.read_labels(Path(options.images.label_list))
    else:
        labels = text_lists.labels_in(lists["train"])
    return labels, _walk_lists(work, lists, labels)


def _walk_lists(work: ImportWork, lists: dict[str, Path], labels: list[str]) -> Iterator[FoundImage]:
    from datasets_service.images.manifest import FoundImage

    numbers = {label: number for number, label in enumerate(labels)}
    by_index = {str(number): number for number in range(len(labels))}
    files, folders = ListedFiles(work), folders_of(work.options)
    for split, file in lists.items():
        for line, path, label in text_lists.labelled_paths(file):
            number = numbers.get(label, by_index.get(label))
            if number is None:
                known = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
                raise ImportRefusedError(f"{file}, line {line}: label {label!r} is none of {known}")
            found = FoundImage(split, number, path, *files.look_up(file, line, folders[split], path))
            if split == "train" and work.options.images.split.method is SplitMethod.BY_NAME:
                found = replace(found, split=split_in_name(path))
            yield found
