"""What a caller asked for, as text, and what it means once it was checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets_service.domain.splitting import SplitAlgorithm
from datasets_service.domain.words import ColorMode, ResizeMode


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
    shards: int = 0
    by_class: bool = False
    plugin: str = ""
    uses_text_lists: bool = False
    train_list: str = ""
    validation_list: str = ""
    test_list: str = ""
    label_list: str = ""
    train_image_path: str = ""
    validation_image_path: str = ""
    test_image_path: str = ""
    color_mode: str = ""
    width: int = 0
    height: int = 0
    resize_mode: str = ""
    validation_percentage: int = 0
    test_percentage: int = 0
    split_algorithm: str = ""
    split_seed: int = 0


@dataclass(frozen=True)
class ImageOptions:
    """Where images lie and what becomes of them. Paths are resolved, empty when they were not given.

    Sizes are pixels, 0 where images keep theirs; percentages are of the training source.
    """

    uses_text_lists: bool = False
    train_list: str = ""
    validation_list: str = ""
    test_list: str = ""
    label_list: str = ""
    train_path: str = ""
    validation_path: str = ""
    test_path: str = ""
    color_mode: ColorMode = ColorMode.COLOR
    width: int = 0
    height: int = 0
    resize_mode: ResizeMode = ResizeMode.SQUASH
    validation_percentage: int = 0
    test_percentage: int = 0
    split_algorithm: str = "hold-out"
    split_seed: int = 0

    @property
    def split(self) -> SplitAlgorithm:
        return SplitAlgorithm.parse(self.split_algorithm)


@dataclass(frozen=True)
class ImportOptions:
    """A request that was checked: every path is resolved and lies inside the data roots."""

    train_path: str = ""
    validation_path: str = ""
    test_path: str = ""
    mean_file: str = ""
    shards: int = 1
    by_class: bool = False
    plugin: str = ""
    images: ImageOptions = field(default_factory=ImageOptions)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ImportOptions:
        """From what `dataclasses.asdict` gave, also after a journey through JSON."""
        images = values["images"]
        words = {"color_mode": ColorMode(images["color_mode"]), "resize_mode": ResizeMode(images["resize_mode"])}
        return cls(**{**values, "images": ImageOptions(**{**images, **words})})
