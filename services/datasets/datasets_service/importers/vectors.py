"""IMGTOVECTOR: text lists of images with target vectors to LMDB."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from servicekit.errors import invalid

from datasets_service.domain.request import DatasetRequest, ImportOptions
from datasets_service.domain.splitting import SplitMethod
from datasets_service.images import text_lists
from datasets_service.images.class_folders import split_in_name
from datasets_service.importers.base import Description, Importer, ImportRefusedError, ImportWork
from datasets_service.importers.images import ListedFiles, check_lists, check_mean, folders_of, lists_of
from datasets_service.usecases.ports import Sources

if TYPE_CHECKING:
    from datasets_service.images.manifest import FoundImage

MAX_VECTOR_VALUES = 100_000


class VectorImporter(Importer):
    """A vector of numbers for every image: kept as `float_data` of its Datum."""

    def check(self, request: DatasetRequest, sources: Sources) -> ImportOptions:
        if request.label_list:
            raise invalid("imagedetail.labeltextpath", request.label_list, "nothing: these images have no labels")
        return ImportOptions(mean_file=check_mean(request, sources), images=check_lists(request, sources))

    def run(self, work: ImportWork) -> Description:
        from datasets_service.images.image_import import import_images

        lists = lists_of(work.options)
        lengths = {split: _vector_length(file) for split, file in lists.items()}
        if len(set(lengths.values())) > 1 or not 1 <= lengths["train"] <= MAX_VECTOR_VALUES:
            said = ", ".join(f"{lists[split]} has {length}" for split, length in lengths.items())
            raise ImportRefusedError(f"vectors need the same length of 1 to {MAX_VECTOR_VALUES} everywhere; {said}")
        folders = folders_of(work.options)
        return import_images(work, lambda: ([], _walk(work, lists)), folders, vector_length=lengths["train"])


def _vector_length(file: Path) -> int:
    return next((len(vector) for _, _, vector in text_lists.vector_paths(file)), 0)


def _walk(work: ImportWork, lists: dict[str, Path]) -> Iterator[FoundImage]:
    import numpy as np

    from datasets_service.images.manifest import FoundImage

    files, folders = ListedFiles(work), folders_of(work.options)
    by_name = work.options.images.split.method is SplitMethod.BY_NAME
    for split, file in lists.items():
        for line, path, vector in text_lists.vector_paths(file):
            size, modified_ns = files.look_up(file, line, folders[split], path)
            chosen = split_in_name(path) if by_name and split == "train" else split
            yield FoundImage(chosen, 0, path, size, modified_ns, np.array(vector, np.float32).tobytes())
