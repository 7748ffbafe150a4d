"""CSV: tables in files, or whatever a plugin can read."""

from __future__ import annotations

from servicekit.errors import invalid

from datasets_service.domain.request import DatasetRequest, ImportOptions
from datasets_service.importers.base import Description, Importer, ImportWork
from datasets_service.importers.fields import plain_paths
from datasets_service.tables.delimited import SUFFIXES, table_files
from datasets_service.usecases.ports import Sources


class TableImporter(Importer):
    """Rows of numbers and text, the same columns in every split."""

    def check(self, request: DatasetRequest, sources: Sources) -> ImportOptions:
        percentages = {"val": request.validation_percentage, "test": request.test_percentage}
        for split, percentage in percentages.items():
            if percentage:
                raise invalid(
                    f"imagedetail.{split}percentage",
                    percentage,
                    f"0: rows are not split; {split}path names rows of {split}",
                )
        if request.mean_file:
            raise invalid("meanfilepath", request.mean_file, "nothing: tables have no mean image")
        paths = plain_paths(request, sources)
        plugin = ""
        if request.plugin:
            plugin = str(sources.file("plugin", request.plugin))
            if not plugin.endswith(".py"):
                raise invalid("plugin", request.plugin, "a Python file, ending with .py")
        # What a plugin reads may have any name.
        for split, path in paths.items() if not plugin else ():
            text = {"train": request.train_path, "val": request.validation_path, "test": request.test_path}[split]
            if path.is_dir() and next(table_files(sources.folder(f"{split}path", text)), None) is None:
                raise invalid(f"{split}path", text, f"a file, or a folder of files ending with {', '.join(SUFFIXES)}")
        return ImportOptions(
            train_path=str(paths["train"]),
            validation_path=str(paths.get("val", "")),
            test_path=str(paths.get("test", "")),
            plugin=plugin,
        )

    def run(self, work: ImportWork) -> Description:
        from datasets_service.tables.table_import import import_tables

        return import_tables(work)
