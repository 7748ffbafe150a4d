"""IMAGEFOROBJECTDETECTION: images with boxes, from Pascal VOC or COCO. The images stay where they are."""

from __future__ import annotations

from servicekit.errors import invalid

from datasets_service.detection.layouts import ALLOWED, CocoFiles, UnknownLayoutError, recognise
from datasets_service.domain.request import DatasetRequest, ImageOptions, ImportOptions
from datasets_service.domain.words import ColorMode, ResizeMode, read_word
from datasets_service.importers.base import Description, Importer, ImportWork
from datasets_service.importers.fields import require_percentages, split_paths
from datasets_service.usecases.ports import Sources


class DetectionImporter(Importer):
    """A class and a box for every object on an image."""

    def check(self, request: DatasetRequest, sources: Sources) -> ImportOptions:
        _require_nothing_else(request)
        paths = split_paths(request)
        given = {split: sources.path(*choice) for split, choice in paths.items() if choice[1] or split == "train"}
        own_sources = set(given) - {"train"}
        for split, path in given.items():
            field, text = paths[split]
            try:
                layout = recognise(path, sources.roots)
            except UnknownLayoutError as error:
                raise invalid(field, text, f"{ALLOWED}; {error}") from error
            if isinstance(layout, CocoFiles):
                if layout.file_of(split) is None:
                    raise invalid(field, text, f"a folder whose annotations/instances_*.json has one for {split}")
                if split == "train":
                    own_sources |= layout.files.keys() & {"val", "test"}
        algorithm = require_percentages(request, sorted(own_sources))
        images = ImageOptions(
            train_path=str(given["train"]),
            validation_path=str(given.get("val", "")),
            test_path=str(given.get("test", "")),
            color_mode=read_word(ColorMode, "imagedetail.imagetype", request.color_mode or ColorMode.COLOR),
            resize_mode=read_word(
                ResizeMode, "imagedetail.resizetransformation", request.resize_mode or ResizeMode.SQUASH
            ),
            validation_percentage=request.validation_percentage,
            test_percentage=request.test_percentage,
            split_algorithm=str(algorithm),
            split_seed=request.split_seed,
        )
        return ImportOptions(images=images)

    def run(self, work: ImportWork) -> Description:
        from datasets_service.detection.detection_import import import_detection

        return import_detection(work)


def _require_nothing_else(request: DatasetRequest) -> None:
    """Images stay as they are and where they are: what would change or list them is not possible."""
    for field, pixels in (("imagedetail.width", request.width), ("imagedetail.height", request.height)):
        if pixels:
            raise invalid(field, pixels, "0: images for object detection keep their size")
    texts = {
        "meanfilepath": request.mean_file,
        "plugin": request.plugin,
        "imagedetail.traintextpath": request.train_list,
        "imagedetail.valtextpath": request.validation_list,
        "imagedetail.testtextpath": request.test_list,
        "imagedetail.labeltextpath": request.label_list,
    }
    for field, text in texts.items():
        if text:
            raise invalid(field, text, "nothing: images for object detection stay as they are")
    if request.uses_text_lists:
        raise invalid("imagedetail.isusingtext", True, "false: the annotations list the images")
