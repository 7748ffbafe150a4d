"""Images to records with every core: processes decode parts, this one writes them in order and remembers how far it is.

Memory holds a few parts however many images there are. The plan alone decides what a part is, so records and digest do
not depend on how many processes there are or how often the import was killed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets_service.domain.dataset import Split
from datasets_service.domain.words import Backend
from datasets_service.images.earlier import MANIFEST, EarlierImports
from datasets_service.images.encoding import encode_parts
from datasets_service.images.manifest import FoundImage, Manifest, State
from datasets_service.images.mean import write_mean
from datasets_service.images.parts import EncodedPart, Recipe, SourceChangedError
from datasets_service.images.pixels import PixelOptions
from datasets_service.images.writers import LmdbWriter, TFRecordWriter, Writer
from datasets_service.importers.base import Description, ImportRefusedError, ImportWork

PART_IMAGES = 512
PART_BYTES = 32 * 1024 * 1024
CHECKPOINT_SECONDS = 2.0
CHECKPOINT_BYTES = 64 * 1024 * 1024
MAX_UNREADABLE_PERCENT = 5
UNREADABLE_SHOWN = 10


def import_images(
    work: ImportWork,
    find: Callable[[], tuple[list[str], Iterable[FoundImage]]],
    folders: dict[str, str],
    *,
    vector_length: int = 0,
) -> Description:
    """Plan (unless an earlier attempt did) and import. `find` gives the labels and the images that are below `folders`;
    `vector_length` is not 0 when images have vectors in place of labels."""
    options, images = work.options, work.options.images
    pixels = PixelOptions(images.color_mode, images.width, images.height, images.resize_mode)
    earlier_imports = EarlierImports(work, pixels, folders)
    manifest = Manifest(work.records / MANIFEST)
    if not manifest.is_planned:
        labels, found = find()
        earlier = earlier_imports.find()
        manifest.plan(
            labels,
            found,
            images.split,
            {"val": images.validation_percentage, "test": images.test_percentage},
            images.split_seed,
            options.shards,
            by_class=options.by_class,
            earlier=earlier / MANIFEST if earlier else None,
        )
    labels = manifest.labels
    if missing := sorted(set(range(len(labels))) - manifest.training_labels()):
        names = ", ".join(labels[number] for number in missing[:10])
        raise ImportRefusedError(f"training has no image of these labels: {names}")
    # What records are taken over from may have been deleted since the plan was made.
    taken_over = manifest.earlier if manifest.earlier and Path(manifest.earlier, MANIFEST).exists() else ""
    recipe = Recipe(work.spec.backend, pixels, folders, labels, work.data_roots, vector_length, taken_over)
    description = ImageImport(work, manifest, recipe).run()
    earlier_imports.remember()
    return description


@dataclass
class ImageImport:
    """One attempt at writing the records of a plan, from where an earlier one stopped."""

    work: ImportWork
    manifest: Manifest
    recipe: Recipe
    _saved_at: float = field(default_factory=time.monotonic)
    _unsaved_bytes: int = 0

    def run(self) -> Description:
        """ImportRefusedError when too many images are unreadable, or the source changes meanwhile."""
        totals = self.manifest.totals()
        total = sum(totals.values())
        state, pixel_sum = self._load()
        writer = self._writer(totals)
        record_bytes = int(np.prod(self.recipe.pixels.shape))
        part_images = max(1, min(PART_IMAGES, PART_BYTES // record_bytes))
        if following := next(self.manifest.parts(state.position, part_images), None):
            writer.resume(state.writer, following)
        self.work.progress(state.position, total)
        parts = self.manifest.parts(state.position, part_images)
        try:
            for encoded in encode_parts(self.work, self.recipe, parts, total - state.position):
                writer.append(encoded)
                Path(encoded.file).unlink()
                self._account(state, pixel_sum, encoded, total)
                self._unsaved_bytes += sum(map(sum, encoded.places))
                if self._is_due():
                    self._save(state, pixel_sum, writer)
                self.work.progress(state.position, total)
        except SourceChangedError as error:
            raise ImportRefusedError(str(error)) from error
        self._save(state, pixel_sum, writer)
        writer.close()
        self.manifest.close()
        return self._describe(state, pixel_sum, list(totals))

    def _load(self) -> tuple[State, np.ndarray]:
        shape = self.recipe.pixels.shape
        state, pixel_sum = self.manifest.load()
        if pixel_sum is not None:
            return state, pixel_sum.reshape(shape)
        recipe = self.recipe
        words = [recipe.labels, recipe.backend, recipe.pixels.color_mode, *shape, recipe.pixels.resize_mode]
        state.digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()
        return state, np.zeros(shape, np.uint64)

    def _writer(self, totals: dict[str, int]) -> Writer:
        folder, recipe = self.work.records, self.recipe
        if recipe.backend is Backend.TFRECORDS:
            return TFRecordWriter(folder, recipe.labels, by_class=self.work.options.by_class)
        return LmdbWriter(folder, totals, int(np.prod(recipe.pixels.shape)) + recipe.vector_length * 5)

    def _account(self, state: State, pixel_sum: np.ndarray, encoded: EncodedPart, total: int) -> None:
        part = encoded.part
        state.position = part.position + len(part.images)
        state.digest = hashlib.sha256(bytes.fromhex(state.digest) + encoded.digest).hexdigest()
        state.add(part.split, encoded.counts)
        if encoded.pixel_sum is not None:
            pixel_sum += encoded.pixel_sum
        for path, reason in encoded.unreadable:
            state.unreadable_count += 1
            if len(state.unreadable) < UNREADABLE_SHOWN:
                state.unreadable.append(f"{path} ({reason})")
            print(f"left out {path}: {reason}", file=sys.stderr)
        if state.unreadable_count * 100 > total * MAX_UNREADABLE_PERCENT:
            raise ImportRefusedError(
                f"more than {MAX_UNREADABLE_PERCENT}% of {total} images could not be read: "
                + ", ".join(state.unreadable)
            )

    def _is_due(self) -> bool:
        waited = time.monotonic() - self._saved_at
        return waited >= CHECKPOINT_SECONDS or self._unsaved_bytes >= CHECKPOINT_BYTES

    def _save(self, state: State, pixel_sum: np.ndarray, writer: Writer) -> None:
        state.writer = writer.checkpoint()
        self.manifest.save(state, pixel_sum)
        self._saved_at, self._unsaved_bytes = time.monotonic(), 0

    def _describe(self, state: State, pixel_sum: np.ndarray, splits: list[str]) -> Description:
        work, recipe = self.work, self.recipe
        counts = {split: state.label_counts(split, recipe.labels) for split in splits}
        records = {split: sum(state.counts.get(split, {}).values()) for split in splits}
        if empty := [label for label, count in counts["train"].items() if not count]:
            raise ImportRefusedError(f"no training image of these labels could be read: {', '.join(empty[:10])}")
        if recipe.labels:
            lines = "".join(f"{label}\n" for label in recipe.labels)
            (work.records / "labels.txt").write_text(lines, encoding="utf-8")
        mean = (pixel_sum / max(1, records["train"])).astype(np.float32)
        write_mean(work, mean)
        channels, height, width = recipe.pixels.shape
        return Description(
            content_hash=state.digest,
            splits={split: Split(work.published(split), records[split], counts[split]) for split in splits},
            labels=recipe.labels,
            mean_file=work.published("mean.npy"),
            unreadable_count=state.unreadable_count,
            unreadable=tuple(state.unreadable),
            details={"image": {"width": width, "height": height, "channels": channels}},
        )
