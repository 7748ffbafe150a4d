"""The Python file that a request names to read or transform its tables; it runs inside the import job only.

    def read_table(path: str) -> pandas.DataFrame            # or an iterator of them: reads the source itself
    def transform_table(table: pandas.DataFrame) -> pandas.DataFrame     # gets at most 100,000 rows at a time

It defines one of them or both.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from datasets_service.importers.base import ImportRefusedError
from datasets_service.sources.confined import SourceFileError, read_inside
from datasets_service.tables.delimited import MAX_CELL_CHARACTERS, MAX_COLUMNS, Part, printable

if TYPE_CHECKING:
    from pandas import DataFrame

CHUNK_ROWS = 100_000
MAX_PLUGIN_BYTES = 1024 * 1024
MAX_TRACEBACK_CHARACTERS = 3000
HOOKS = ("read_table", "transform_table")
_MODULE = "dlmesh_table_plugin"


class Plugin:
    """A loaded plugin. What it raises, or returns where a table was wanted, is refused in its own words."""

    def __init__(self, path: Path, data_roots: Sequence[Path]) -> None:
        """Runs the file once. ImportRefusedError also when it defines no hook."""
        try:
            source = read_inside(path, data_roots, MAX_PLUGIN_BYTES)
        except SourceFileError as error:
            raise ImportRefusedError(f"plugin {path} {error}") from error
        self._path = path
        self.sha256 = hashlib.sha256(source).hexdigest()
        module = ModuleType(_MODULE)
        module.__file__ = str(path)
        # Dataclasses and pickles look their module up.
        sys.modules[_MODULE] = module
        with self._blamed():
            exec(compile(source, str(path), "exec"), module.__dict__)
        hooks: list[Callable[[Any], Any] | None] = [getattr(module, name, None) for name in HOOKS]
        self._read, self._transform = hooks
        if not any(hooks) or not all(hook is None or callable(hook) for hook in hooks):
            raise ImportRefusedError(f"plugin {path} must define the function {' or '.join(HOOKS)}, or both")

    @property
    def reads(self) -> bool:
        """Whether it reads the source itself."""
        return self._read is not None

    @property
    def transforms(self) -> bool:
        return self._transform is not None

    def read(self, source: Path) -> Iterator[DataFrame]:
        """What `read_table` makes of `source`."""
        from pandas import DataFrame

        assert self._read is not None
        with self._blamed():
            tables = self._read(str(source))
        if isinstance(tables, DataFrame):
            tables = [tables]
        if not isinstance(tables, Iterable):
            raise self._wrong("read_table", tables)
        with self._blamed():
            frames = iter(tables)
        end = object()
        while True:
            with self._blamed():
                frame = next(frames, end)
            if frame is end:
                return
            if not isinstance(frame, DataFrame):
                raise self._wrong("read_table", frame)
            yield frame

    def transform(self, frames: Iterable[DataFrame]) -> Iterator[DataFrame]:
        """What `transform_table` makes of `frames`, in chunks; the same frames when there is no such hook."""
        from pandas import DataFrame

        for frame in frames:
            for first in range(0, max(1, len(frame)), CHUNK_ROWS):
                chunk = frame.iloc[first : first + CHUNK_ROWS]
                if self._transform is not None:
                    with self._blamed():
                        chunk = self._transform(chunk.reset_index(drop=True))
                    if not isinstance(chunk, DataFrame):
                        raise self._wrong("transform_table", chunk)
                yield chunk

    def made_of(self, source: Path) -> str:
        """What errors call its tables."""
        return f"what plugin {self._path} made of {source}"

    def parts(self, source: Path, frames: Iterable[DataFrame]) -> Iterator[Part]:
        """The frames as text; their index is dropped."""
        for number, frame in enumerate(frames, 1):
            origin = f"table {number} of {self.made_of(source)}"
            columns = [str(column) for column in frame.columns]
            if not 1 <= len(columns) <= MAX_COLUMNS:
                raise ImportRefusedError(f"{origin} has {len(columns)} columns; 1 to {MAX_COLUMNS} are possible")
            yield Part(origin, columns, self._rows(origin, frame))

    def _rows(self, origin: str, frame: DataFrame) -> Iterator[list[str]]:
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        with self._blamed():
            text = frame.to_csv(index=False, header=False, quoting=csv.QUOTE_ALL, lineterminator="\n")
            text.encode()
        if "\0" in text:
            raise ImportRefusedError(f"{origin} has a NUL character in a cell")
        try:
            yield from csv.reader(io.StringIO(text, newline=""), strict=True)
        except csv.Error as error:
            raise ImportRefusedError(f"{origin}: {error}") from error

    def _wrong(self, hook: str, value: object) -> ImportRefusedError:
        wanted = "a pandas.DataFrame" + (" or an iterator of them" if hook == "read_table" else "")
        return ImportRefusedError(f"plugin {self._path}: {hook} gave {type(value).__name__}, not {wanted}")

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Its owner sees the frames of the plugin only: ours say nothing about it."""
        try:
            yield
        except (Exception, SystemExit) as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self._path)]
            lines = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
            text = printable("".join(lines)).rstrip()[-MAX_TRACEBACK_CHARACTERS:]
            raise ImportRefusedError(f"plugin {self._path} failed:\n{text}") from error
