"""Check a request field by field, then write the intent to import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from servicekit.errors import invalid, not_built
from servicekit.identity import current_identity
from servicekit.names import check_name
from servicekit.times import utc_now

from datasets_service.domain.dataset import Dataset, ImageOptions
from datasets_service.domain.words import Backend, ColorMode, ResizeMode, SourceType, read_word, require_built
from datasets_service.usecases.ports import Jobs, Sources, Storage

MAX_PIXELS_A_SIDE = 4096
MAX_CLASSES = 100_000
HOLD_OUT = ("", "hold-out", "holdout")


@dataclass(frozen=True)
class DatasetRequest:
    """The body of a request; empty text and 0 mean that a field was not given."""

    name: str
    source_type: str
    backend: str
    instance_group: str
    train_path: str = ""
    validation_path: str = ""
    test_path: str = ""
    mean_file: str = ""
    train_image_path: str = ""
    validation_image_path: str = ""
    test_image_path: str = ""
    text_lists: tuple[str, ...] = ()
    uses_text_lists: bool = False
    color_mode: str = ""
    width: int = 0
    height: int = 0
    resize_mode: str = ""
    validation_percentage: int = 0
    test_percentage: int = 0
    split_algorithm: str = ""
    shards: int = 0
    by_class: bool = False
    plugin: str = ""


class CreateDataset:
    """Nothing is written unless every field is right; then the import follows by itself."""

    def __init__(self, storage: Storage, sources: Sources, jobs: Jobs, wake: Callable[[], None]) -> None:
        self._storage, self._sources, self._jobs, self._wake = storage, sources, jobs, wake

    async def __call__(self, request: DatasetRequest) -> Dataset:
        name = check_name("name", request.name)
        source_type = read_word(SourceType, "datasourcetype", request.source_type)
        backend = read_word(Backend, "dbbackend", request.backend)
        require_built(source_type, backend)
        _require_built_options(request)
        dataset = Dataset(
            uid=uuid4().hex,
            name=name,
            owner=current_identity().user,
            created_at=utc_now(),
            job_id=uuid4().hex,
            source_type=source_type,
            backend=backend,
            images=await self._image_options(request),
            group=await self._jobs.instance_group("sigid", request.instance_group),
        )
        async with self._storage.transaction() as datasets:
            await datasets.add(dataset)
        self._wake()
        return dataset

    async def _image_options(self, request: DatasetRequest) -> ImageOptions:
        _require_percentages(request)
        color_mode = read_word(ColorMode, "imagedetail.imagetype", request.color_mode or ColorMode.COLOR)
        resize_mode = read_word(ResizeMode, "imagedetail.resizetransformation", request.resize_mode or "squash")
        for field, pixels in (("imagedetail.width", request.width), ("imagedetail.height", request.height)):
            if not 1 <= pixels <= MAX_PIXELS_A_SIDE:
                raise invalid(field, pixels, f"1 to {MAX_PIXELS_A_SIDE} pixels")
        train, classes = await self._training_folder(request)
        return ImageOptions(
            train_path=str(train),
            validation_path=await self._held_out_folder(
                "val", request.validation_image_path, request.validation_path, request.validation_percentage, classes
            ),
            test_path=await self._held_out_folder(
                "test", request.test_image_path, request.test_path, request.test_percentage, classes
            ),
            color_mode=color_mode,
            width=request.width,
            height=request.height,
            resize_mode=resize_mode,
            validation_percentage=request.validation_percentage,
            test_percentage=request.test_percentage,
        )

    async def _training_folder(self, request: DatasetRequest) -> tuple[Path, list[str]]:
        field, text = _choose("train", request.train_image_path, request.train_path)
        folder = await self._sources.resolve(field, text)
        classes = await self._sources.class_names(folder)
        if not 2 <= len(classes) <= MAX_CLASSES:
            raise invalid(
                field, text, f"a folder with a folder of images for each class, 2 at least; {len(classes)} were found"
            )
        for name in classes:
            if not name.isprintable():
                raise invalid(field, name, "class folders whose names are printable text")
        return folder, classes

    async def _held_out_folder(
        self, split: str, image_path: str, path: str, percentage: int, classes: list[str]
    ) -> str:
        field, text = _choose(split, image_path, path)
        if not text:
            return ""
        if percentage:
            raise invalid(f"imagedetail.{split}percentage", percentage, f"0 when {field} is given")
        folder = await self._sources.resolve(field, text)
        found = await self._sources.class_names(folder)
        if not found or (unknown := sorted(set(found) - set(classes))):
            what = f"these are unknown to training: {', '.join(unknown[:10])}" if found else "none was found"
            raise invalid(field, text, f"a folder with a folder of images for each class; {what}")
        return str(folder)


def _choose(split: str, image_path: str, path: str) -> tuple[str, str]:
    """Field and text of the source of a split; it may be given in either of two fields."""
    if image_path and path and image_path != path:
        raise invalid(f"{split}path", path, f"nothing, or the same as imagedetail.{split}imagepath ({image_path!r})")
    if path and not image_path:
        return f"{split}path", path
    return f"imagedetail.{split}imagepath", image_path


def _require_percentages(request: DatasetRequest) -> None:
    percentages = (request.validation_percentage, request.test_percentage)
    for split, percentage in zip(("val", "test"), percentages, strict=True):
        if not 0 <= percentage <= 100:
            raise invalid(f"imagedetail.{split}percentage", percentage, "0 to 100")
    if sum(percentages) >= 100:
        raise invalid(
            "imagedetail.valpercentage",
            percentages[0],
            f"less than 100 together with imagedetail.testpercentage ({percentages[1]}), so that training keeps some",
        )
    if request.split_algorithm.casefold() not in HOLD_OUT:
        raise invalid("imagedetail.splitalgorithm", request.split_algorithm, [HOLD_OUT[1]])


def _require_built_options(request: DatasetRequest) -> None:
    """501 for what other sources have; values that ask for nothing are fine."""
    if request.uses_text_lists or any(request.text_lists):
        raise not_built("imagedetail.isusingtext (built: class folders in imagedetail.trainimagepath)")
    if request.mean_file:
        raise not_built("meanfilepath (the mean of the training images is computed)")
    if request.shards < 0:
        raise invalid("shards", request.shards, "0 or 1")
    if request.shards > 1:
        raise not_built("shards above 1 (an LMDB dataset has one record file a split)")
    if request.by_class:
        raise not_built("byclass")
    if request.plugin:
        raise not_built("plugin")
