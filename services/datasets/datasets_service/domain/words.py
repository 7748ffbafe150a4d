"""The words of the contract: read in any case, printed as the reference spells them."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from servicekit.errors import invalid


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


BACKENDS = {
    SourceType.LMDB: (Backend.LMDB,),
    SourceType.TFRECORDS: (Backend.TFRECORDS,),
    SourceType.OTHER: (Backend.OTHER,),
    SourceType.IMAGES_FOR_CLASSIFICATION: (Backend.LMDB, Backend.TFRECORDS),
    SourceType.CSV: (Backend.CSV,),
    SourceType.IMAGES_FOR_DETECTION: (Backend.OBJECT_DETECTION,),
    SourceType.IMAGES_TO_VECTOR: (Backend.IMAGE_VECTOR,),
}


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


def read_backend(source_type: SourceType, text: str) -> Backend:
    """The backend that `text` spells, if this source can be stored so."""
    backend = read_word(Backend, "dbbackend", text)
    if backend not in BACKENDS[source_type]:
        raise invalid("dbbackend", text, [str(known) for known in BACKENDS[source_type]])
    return backend


def _plain(text: str) -> str:
    return "".join(character for character in text.casefold() if character not in " ,_-")
