"""Source type -> importer; loaded when asked for."""

from __future__ import annotations

from importlib import import_module

from datasets_service.domain.words import SourceType
from datasets_service.importers.base import Importer

IMPORTERS = {
    SourceType.IMAGES_FOR_CLASSIFICATION: "datasets_service.importers.classification:ClassificationImporter",
    SourceType.IMAGES_TO_VECTOR: "datasets_service.importers.vectors:VectorImporter",
    SourceType.IMAGES_FOR_DETECTION: "datasets_service.importers.detection:DetectionImporter",
    SourceType.CSV: "datasets_service.importers.tables:TableImporter",
    SourceType.LMDB: "datasets_service.importers.registered_lmdb:LmdbImporter",
    SourceType.TFRECORDS: "datasets_service.importers.registered_tfrecords:TFRecordsImporter",
    SourceType.OTHER: "datasets_service.importers.registered_other:OtherImporter",
}


def importer_for(source_type: SourceType) -> Importer:
    """The importer of this source type."""
    module, name = IMPORTERS[source_type].split(":")
    importer: Importer = getattr(import_module(module), name)()
    return importer
