"""The words of the contract: read in any case, printed as the reference spells them."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from servicekit.errors import invalid, not_built


class SourceType(StrEnum):
    """What `datasourcetype` may be."""

    LMDB = "LMDB"
    TFRECORDS = "TFRECORDS"
    OTHER = "OTHER"
    IMAGES_FOR_CLASSIFICATION = "IMAGEFORCLASSIFICATION"
    CSV = "CSV"
    IMAGES_FOR_DETECTION = "IMAGEFOROBJECTDETECTION"
    IMAGES_TO_VECTOR = "IMGTOVECTOR"


class Backend(StrEnum):
    """What `dbbackend` may be."""

    LMDB = "LMDB"
    TFRECORDS = "TFRecords"
    CSV = "CSV"
    IMAGE_VECTOR = "ImageVector"
    OBJECT_DETECTION = "ObjectDetection"
    OTHER = "Other"


class ColorMode(StrEnum):
    """What `imagedetail.imagetype` may be."""

    COLOR = "Color"
    GRAY = "Gray"

    @property
    def channels(self) -> int:
        return 3 if self is ColorMode.COLOR else 1


class ResizeMode(StrEnum):
    """What `imagedetail.resizetransformation` may be."""

    SQUASH = "squash"
    CROP = "crop"
    FILL = "fill"
    HALF_CROP_HALF_FILL = "half crop, half fill"


Word = TypeVar("Word", bound=StrEnum)


def read_word(words: type[Word], field: str, text: str) -> Word:
    """The word that `text` spells; case, spaces, commas and underscores do not count. 400 lists the words."""
    wanted = _plain(text)
    for word in words:
        if _plain(word) == wanted:
            return word
    raise invalid(field, text, [str(word) for word in words])


def require_built(source_type: SourceType, backend: Backend) -> None:
    """501 naming what is built."""
    if (source_type, backend) != (SourceType.IMAGES_FOR_CLASSIFICATION, Backend.LMDB):
        raise not_built(
            f"datasourcetype {source_type} with dbbackend {backend} "
            f"(built: {SourceType.IMAGES_FOR_CLASSIFICATION} with {Backend.LMDB})"
        )


def _plain(text: str) -> str:
    return "".join(character for character in text.casefold() if character not in " ,_-")
