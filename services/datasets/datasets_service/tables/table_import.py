"""Tables of a source to records."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from datasets_service.domain.dataset import Split
from datasets_service.importers.base import Description, ImportRefusedError, ImportWork
from datasets_service.tables.cells import is_number, is_plain_number_or_empty
from datasets_service.tables.delimited import Part, read_parts, table_files
from datasets_service.tables.records import COLUMNS, DATA, TableWriter, write_columns

if TYPE_CHECKING:
    from pandas import DataFrame

    from datasets_service.tables.plugin import Plugin

CHUNK_BYTES = 64 * 1024 * 1024


def import_tables(work: ImportWork) -> Description:
    """Copy every split, through the plugin when there is one. ImportRefusedError when the source will not do."""
    work.start_over()
    options = work.options
    paths = {"train": options.train_path, "val": options.validation_path, "test": options.test_path}
    sources = {split: Path(path) for split, path in paths.items() if path}
    plugin = None
    if options.plugin:
        from datasets_service.tables.plugin import Plugin

        plugin = Plugin(Path(options.plugin), work.data_roots)
    tables = TableSet(work.records)
    if plugin and plugin.reads:
        _read_by_plugin(work, sources, plugin, tables)
    elif plugin:
        _transform_by_plugin(work, sources, plugin, tables)
    else:
        _copy(work, sources, tables, work.progress)
    write_columns(work.records / COLUMNS, tables.columns, tables.numbers)
    splits = {split: Split(work.published(f"{split}/{DATA}"), count, {}) for split, count in tables.counts.items()}
    return Description(content_hash=tables.digest(plugin.sha256 if plugin else ""), splits=splits)


class TableSet:
    """Splits of a dataset while they are written to `folder`: the same columns everywhere, and what they hold.

    `numbers` are the positions of the columns whose cells are all numbers, or empty, so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.columns: list[str] = []
        self.numbers: list[int] = []
        self.counts: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._origin = ""

    def write(self, split: str, origin: object, parts: Iterator[Part]) -> None:
        """Write one split; its parts need the columns of the very first one. Errors call it `origin`."""
        first = next(parts, None)
        if first is None:
            raise ImportRefusedError(f"{origin} has no table")
        self._require_columns(first)
        with TableWriter(self.folder / split, self.columns) as writer:
            self._write_rows(writer, first.rows)
            for part in parts:
                self._require_columns(part)
                self._write_rows(writer, part.rows)
        if not writer.count:
            raise ImportRefusedError(f"{origin} has no rows")
        self.counts[split], self._digests[split] = writer.count, writer.sha256

    def digest(self, plugin_sha256: str) -> str:
        """Of columns, splits, rows and plugin."""
        content = [self.columns, self.numbers, self._digests, plugin_sha256]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _write_rows(self, writer: TableWriter, rows: Iterable[list[str]]) -> None:
        for row in rows:
            if not all(map(is_plain_number_or_empty, map(row.__getitem__, self.numbers))):
                self.numbers = [number for number in self.numbers if not row[number] or is_number(row[number])]
            writer.write(row)

    def _require_columns(self, part: Part) -> None:
        columns = part.columns
        if not self.columns:
            if len(set(columns)) < len(columns):
                twice = next(name for name, count in Counter(columns).items() if count > 1)
                raise ImportRefusedError(f"{part.origin}: column {twice[:200]!r} is there twice")
            self.columns, self.numbers, self._origin = columns, list(range(len(columns))), part.origin
        if len(columns) != len(self.columns):
            raise ImportRefusedError(
                f"{part.origin} has {len(columns)} columns, {self._origin} has {len(self.columns)}"
            )
        for number, (name, wanted) in enumerate(zip(columns, self.columns, strict=True), 1):
            if name != wanted:
                raise ImportRefusedError(
                    f"{part.origin}: column {number} is {name[:200]!r}, in {self._origin} it is {wanted[:200]!r}"
                )


def _copy(
    work: ImportWork, sources: dict[str, Path], tables: TableSet, progress: Callable[[float, float], None]
) -> None:
    sizes = {split: _size(source) for split, source in sources.items()}
    total, before = sum(sizes.values()), 0
    for split, source in sources.items():
        parts = read_parts(source, work.data_roots, lambda done, before=before: progress(before + done, total))  # type: ignore[misc]
        # A refusal leaves files open otherwise.
        with closing(parts):
            tables.write(split, source, parts)
        before += sizes[split]


def _read_by_plugin(work: ImportWork, sources: dict[str, Path], plugin: Plugin, tables: TableSet) -> None:
    for number, (split, source) in enumerate(sources.items()):
        work.progress(number, len(sources))
        tables.write(split, plugin.made_of(source), plugin.parts(source, plugin.transform(plugin.read(source))))


def _transform_by_plugin(work: ImportWork, sources: dict[str, Path], plugin: Plugin, tables: TableSet) -> None:
    """The plugin sees our copy: checked, and with columns whose types do not change from chunk to chunk."""
    copies = TableSet(work.scratch)
    _copy(work, sources, copies, lambda done, total: work.progress(done, 2 * total))
    rows, before = sum(copies.counts.values()), 0
    for split, source in sources.items():
        work.progress(rows + before, 2 * rows)
        tables.write(split, plugin.made_of(source), plugin.parts(source, plugin.transform(_frames(copies, split))))
        before += copies.counts[split]


def _frames(copies: TableSet, split: str) -> Iterator[DataFrame]:
    """A copied split: columns of text as such, columns of numbers as pandas reads them, empty cells missing."""
    import pandas as pd

    from datasets_service.tables.plugin import CHUNK_ROWS

    file = copies.folder / split / DATA
    row_bytes = file.stat().st_size // copies.counts[split] + 1
    texts = set(range(len(copies.columns))) - set(copies.numbers)
    with pd.read_csv(
        file,
        names=copies.columns,
        header=0,
        dtype={copies.columns[position]: str for position in texts},
        keep_default_na=False,
        na_values=[""],
        chunksize=min(CHUNK_ROWS, CHUNK_BYTES // row_bytes + 1),
    ) as frames:
        yield from frames


def _size(source: Path) -> int:
    """Bytes; of what is there to read, which is checked when it is read."""
    try:
        return sum(file.stat().st_size for file in (table_files(source) if source.is_dir() else [source]))
    except OSError as error:
        raise ImportRefusedError(f"{source} cannot be read: {error.strerror}") from error
