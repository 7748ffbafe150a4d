"""Encoding parts with every core, in their order; an image that crashes its decoder is found and left out."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace

from datasets_service.images.manifest import Part
from datasets_service.images.parts import EncodedPart, Recipe, encode_part
from datasets_service.importers.base import ImportWork
from datasets_service.sources.cores import Cores


def encode_parts(work: ImportWork, recipe: Recipe, parts: Iterable[Part], images: int) -> Iterator[EncodedPart]:
    """All `parts`, which hold so many images; SourceChangedError when one changed since it was planned."""
    folder = work.scratch / "parts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    encode = functools.partial(_encode, recipe=recipe, folder=str(folder))
    with Cores(apart=work.is_retry) as cores:
        for part, encoded in cores.map(encode, parts, images, None, chunk=1):
            yield encoded or _without_crashing(part, recipe, str(folder))


def _without_crashing(part: Part, recipe: Recipe, folder: str) -> EncodedPart:
    """Each image alone, to know which of them no process survives; then the part without those."""
    alone = (replace(part, images=[image]) for image in part.images)
    with Cores(apart=True) as cores:
        tried = cores.map(functools.partial(_encode, recipe=recipe, folder=folder), alone, len(part.images), None)
        crashing = frozenset(one.images[0].number for one, encoded in tried if encoded is None)
    return encode_part(part, recipe, folder, crashing)


def _encode(part: Part, recipe: Recipe, folder: str) -> EncodedPart | None:
    return encode_part(part, recipe, folder)
