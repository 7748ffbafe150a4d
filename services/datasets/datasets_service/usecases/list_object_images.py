"""A part of the images of a detection dataset."""

from __future__ import annotations

from collections.abc import AsyncIterator

from servicekit.errors import not_found

from datasets_service.domain.object_image import ObjectImage
from datasets_service.domain.words import SourceType
from datasets_service.usecases.get_dataset import GetDataset
from datasets_service.usecases.ports import ObjectImages
from datasets_service.usecases.slices import SliceRequest, finished_split


class ListObjectImages:
    """400 for a wrong parameter, another source type or an unfinished import; 404 for no dataset or an absent split."""

    def __init__(self, get_dataset: GetDataset, images: ObjectImages) -> None:
        self._get_dataset, self._images = get_dataset, images

    async def __call__(
        self, name: str, type_text: str, start: int | None, length: int | None
    ) -> AsyncIterator[ObjectImage]:
        dataset = await self._get_dataset(name)
        wanted = SliceRequest.parse(type_text, start, length)
        split = finished_split(dataset, SourceType.IMAGES_FOR_DETECTION, wanted.split)
        try:
            async for image in self._images.read(split.path, wanted.start, wanted.length):
                yield image
        except FileNotFoundError as error:
            # It was deleted meanwhile.
            raise not_found("dataset", name) from error
