"""A part of the rows of a CSV dataset."""

from __future__ import annotations

from servicekit.errors import invalid, not_found

from datasets_service.domain.table import SliceTooLargeError, TableSlice
from datasets_service.domain.words import SourceType
from datasets_service.usecases.get_dataset import GetDataset
from datasets_service.usecases.ports import Tables
from datasets_service.usecases.slices import SliceRequest, finished_split


class ReadCsv:
    """400 for a wrong parameter, more than an answer holds, another source type or an unfinished import; 404 for no
    dataset or an absent split."""

    def __init__(self, get_dataset: GetDataset, tables: Tables) -> None:
        self._get_dataset, self._tables = get_dataset, tables

    async def __call__(self, name: str, type_text: str, start: int | None, length: int | None) -> TableSlice:
        dataset = await self._get_dataset(name)
        wanted = SliceRequest.parse(type_text, start, length)
        split = finished_split(dataset, SourceType.CSV, wanted.split)
        try:
            return await self._tables.read(split.path, wanted.start, wanted.length)
        except SliceTooLargeError as error:
            if error.fitting:
                allowed = f"1 to {error.fitting} from row {wanted.start} on: more do not fit into one answer"
                raise invalid("length", wanted.length, allowed) from error
            allowed = f"a row that fits into one answer; row {wanted.start} does not, read it from {split.path}"
            raise invalid("start", wanted.start, allowed) from error
        except FileNotFoundError as error:
            # It was deleted meanwhile.
            raise not_found("dataset", name) from error
