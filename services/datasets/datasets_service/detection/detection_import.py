"""From the sources of an import to its records: load, split, look at every image, write."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from datasets_service.detection.catalog import Catalog, RawBox, SourceImage
from datasets_service.detection.coco import CocoSource
from datasets_service.detection.images import SeenImage, look_at
from datasets_service.detection.layouts import CocoFiles, UnknownLayoutError, VocRoot, recognise
from datasets_service.detection.records import ObjectImageWriter
from datasets_service.detection.voc import VocSource
from datasets_service.domain.dataset import Split
from datasets_service.domain.object_image import ObjectBox, ObjectImage
from datasets_service.domain.request import ImageOptions
from datasets_service.domain.splitting import SplitMethod
from datasets_service.importers.base import Description, ImportRefusedError, ImportWork
from datasets_service.sources.cores import Cores

SPLITS = ("train", "val", "test")
MAX_LABELS = 10_000
MAX_LEFT_OUT_PERCENT = 5
LEFT_OUT_SHOWN = 10
# Far below what an annotator can see; hides what adding two numbers does to the last digits.
DECIMALS = 4

Source = VocSource | CocoSource


@dataclass
class Outcome:
    """What was found so far. `left_out` of `total` images have a problem, `empty_boxes` had no area."""

    total: int
    left_out: int = 0
    named: list[str] = field(default_factory=list)
    empty_boxes: int = 0
    size_bytes: int = 0

    def leave_out(self, image: SourceImage, problem: str) -> None:
        """Count an image that is left out; refuses as soon as there are too many."""
        name = image.name if image.name.isprintable() else ascii(image.name)
        self.left_out += 1
        if len(self.named) < LEFT_OUT_SHOWN:
            self.named.append(f"{name} ({problem})")
        print(f"left out {name}: {problem}", file=sys.stderr)
        if self.left_out * 100 > self.total * MAX_LEFT_OUT_PERCENT:
            raise ImportRefusedError(
                f"more than {MAX_LEFT_OUT_PERCENT}% of {self.total} images cannot be used: " + ", ".join(self.named)
            )


def import_detection(work: ImportWork) -> Description:
    """ImportRefusedError when a source will not do."""
    work.start_over()
    catalog = Catalog(work.scratch / "catalog.sqlite")
    try:
        with Cores(apart=work.is_retry) as cores:
            labels = _load(work, catalog, cores)
            return _write(work, catalog, cores, labels)
    finally:
        catalog.close()


def _load(work: ImportWork, catalog: Catalog, cores: Cores) -> list[str]:
    """Every image in its split, every box with its class; the labels in their order."""
    images = work.options.images
    sources = sources_of(images, work)
    for source in sources.values():
        if isinstance(source, VocSource):
            source.load(catalog, cores)
        else:
            source.load(catalog)
    catalog.settle()
    training = sources["train"]
    labels = training.labels if isinstance(training, CocoSource) else catalog.categories("train", MAX_LABELS + 1)
    if not 1 <= len(labels) <= MAX_LABELS:
        raise ImportRefusedError(f"training has {len(labels)} classes; 1 to {MAX_LABELS} are possible")
    for split in sources.keys() - {"train"}:
        if unknown := sorted(set(catalog.categories(split, MAX_LABELS + 1)) - set(labels)):
            raise ImportRefusedError(f"the {split} source has classes that training has not: {', '.join(unknown[:10])}")
    if not uses_lists(images, training.layout):
        percentages = {"val": images.validation_percentage, "test": images.test_percentage}
        catalog.split(images.split, percentages, images.split_seed)
    if shared := catalog.shared_image():
        raise ImportRefusedError(f"{shared} is an image of two splits")
    return labels


def sources_of(images: ImageOptions, work: ImportWork) -> dict[str, Source]:
    """What each split that has a source reads; ImportRefusedError when one is of no known form."""
    given = {"train": images.train_path, "val": images.validation_path, "test": images.test_path}
    layouts = {split: _recognised(Path(path), work) for split, path in given.items() if path}
    training = layouts["train"]
    if isinstance(training, CocoFiles):
        for split in training.files.keys() & set(SPLITS):
            layouts.setdefault(split, training)
    sources: dict[str, Source] = {}
    for split, layout in layouts.items():
        if isinstance(layout, CocoFiles):
            file = layout.file_of(split)
            if file is None:
                raise ImportRefusedError(f"{layout.root} has no instances file for {split}")
            sources[split] = CocoSource(split, layout, file, work.data_roots)
        else:
            sources[split] = VocSource(split, layout, _lists(images, split, layout, set(layouts)), work.data_roots)
    return sources


def uses_lists(images: ImageOptions, layout: VocRoot | CocoFiles) -> bool:
    """Whether the training source's own lists decide on its splits, not percentages."""
    is_asked = images.validation_percentage or images.test_percentage
    plain = images.split.method in (SplitMethod.HOLD_OUT, SplitMethod.RANDOM)
    return isinstance(layout, VocRoot) and not is_asked and plain and layout.list_of("train") is not None


def _lists(images: ImageOptions, split: str, layout: VocRoot, given: set[str]) -> dict[str, Path]:
    """The lists of images that a source of `split` is read by; none when it is read whole."""
    if split != "train":
        wanted = [split]
    elif uses_lists(images, layout):
        # Training last: trainval.txt is for training as far as no other list has an image.
        wanted = [*({"val", "test"} - given), "train"]
    else:
        wanted = []
    lists = {name: layout.list_of(name) for name in sorted(wanted, key=SPLITS.index, reverse=True)}
    return {name: file for name, file in lists.items() if file}


def _recognised(path: Path, work: ImportWork) -> VocRoot | CocoFiles:
    try:
        return recognise(path, work.data_roots)
    except UnknownLayoutError as error:
        raise ImportRefusedError(f"{path} is no source of images with boxes: {error}") from error


def _write(work: ImportWork, catalog: Catalog, cores: Cores, labels: list[str]) -> Description:
    outcome = Outcome(total=catalog.count())
    digest = hashlib.sha256(json.dumps(labels).encode())
    splits: dict[str, Split] = {}
    done = 0
    work.progress(0, outcome.total)
    for split in SPLITS:
        counts, images = dict.fromkeys(labels, 0), 0
        digest.update(f"split {split}\n".encode())
        with ObjectImageWriter(work.records / split) as writer:
            look = partial(look_at, data_roots=work.data_roots)
            crashed: SeenImage | str = "it crashes the decoder"
            for image, seen in cores.map(look, catalog.images(split), outcome.total, crashed):
                done += 1
                work.progress(done, outcome.total)
                if isinstance(seen, str):
                    outcome.leave_out(image, seen)
                    continue
                raw = list(catalog.boxes(image))
                boxes = tuple(box for box in (clip(one, seen) for one in raw) if box)
                writer.write(ObjectImage(image.name, image.path, seen.width, seen.height, boxes))
                outcome.empty_boxes += len(raw) - len(boxes)
                outcome.size_bytes += seen.size_bytes
                images += 1
                for box in boxes:
                    counts[box.label] += 1
                digest.update(_digested(image.name, boxes) + seen.digest)
        if images:
            splits[split] = Split(work.published(split), images, counts)
        else:
            shutil.rmtree(work.records / split)
    if "train" not in splits or not any(splits["train"].labels.values()):
        raise ImportRefusedError("no image for training has a box")
    (work.records / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    return Description(
        content_hash=digest.hexdigest(),
        splits=splits,
        labels=labels,
        size_bytes=outcome.size_bytes,
        unreadable_count=outcome.left_out,
        unreadable=tuple(outcome.named),
        details={"empty_boxes": outcome.empty_boxes},
    )


def clip(box: RawBox, image: SeenImage) -> ObjectBox | None:
    """The part of a box that is inside its image; None when it has no area."""
    xmin, xmax = (round(min(max(x, 0.0), float(image.width)), DECIMALS) for x in (box.xmin, box.xmax))
    ymin, ymax = (round(min(max(y, 0.0), float(image.height)), DECIMALS) for y in (box.ymin, box.ymax))
    if xmin >= xmax or ymin >= ymax:
        return None
    return ObjectBox(box.category, (xmin, ymin, xmax, ymax), box.is_difficult, box.is_crowd)


def _digested(name: str, boxes: tuple[ObjectBox, ...]) -> bytes:
    return json.dumps([name, [[box.label, box.bbox, box.is_difficult, box.is_crowd] for box in boxes]]).encode()
