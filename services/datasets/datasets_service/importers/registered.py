"""What the importers of data that stays where it is share."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from servicekit.errors import invalid

from datasets_service.domain.dataset import Split
from datasets_service.domain.request import DatasetRequest, ImportOptions
from datasets_service.importers.base import Description, Importer, ImportRefusedError, ImportWork
from datasets_service.importers.fields import SPLITS, plain_paths
from datasets_service.usecases.ports import Sources

if TYPE_CHECKING:
    from datasets_service.registered.scan import Scan

MAX_LABELS = 100_000
MAX_LABELS_FILE_BYTES = 64 * 1024 * 1024


class RegisteredImporter(Importer):
    """A split is a path of the user's; nothing of ours is written but the description."""

    def check(self, request: DatasetRequest, sources: Sources) -> ImportOptions:
        paths = plain_paths(request, sources)
        for split, path in paths.items():
            if what := self.missing_in(path):
                raise invalid(f"{split}path", str(path), what)
        return ImportOptions(
            train_path=str(paths["train"]),
            validation_path=str(paths.get("val", "")),
            test_path=str(paths.get("test", "")),
            mean_file=str(sources.file("meanfilepath", request.mean_file)) if request.mean_file else "",
        )

    @abstractmethod
    def missing_in(self, path: Path) -> str:
        """What `path` should be, when it shows at a glance that it is not; empty when it may be."""


class RecordsImporter(RegisteredImporter):
    """Records whose labels can be read."""

    def run(self, work: ImportWork) -> Description:
        paths = registered_paths(work.options)
        sizes = {split: self.size_bytes(path) for split, path in paths.items()}
        total, done, scans = sum(sizes.values()), 0, {}
        for split, path in paths.items():
            before = done

            def progress(read_bytes: int) -> None:
                nonlocal done
                done += read_bytes
                work.progress(min(done, total), total)

            scans[split] = self.scan(work, path, progress)
            done = before + sizes[split]
            work.progress(done, total)
        names = _label_names(work, scans)
        digest = hashlib.sha256()
        for split, scan in scans.items():
            digest.update(f"{split} {scan.records} {scan.digest}\n".encode())
        return Description(
            content_hash=digest.hexdigest(),
            splits={
                split: Split(str(paths[split]), scan.records, _named(scan, names)) for split, scan in scans.items()
            },
            labels=list(names.values()),
            mean_file=work.options.mean_file,
            size_bytes=total,
            details={
                "image": {
                    name: least if least == most else [least, most]
                    for name, (least, most) in scans["train"].extremes.items()
                },
                "records_without_label": sum(scan.unlabelled for scan in scans.values()),
            },
        )

    @abstractmethod
    def size_bytes(self, path: Path) -> int:
        """Of the files of a split."""

    @abstractmethod
    def scan(self, work: ImportWork, path: Path, progress: Callable[[int], None]) -> Scan:
        """Every record of a split."""


def registered_paths(options: ImportOptions) -> dict[str, Path]:
    """By split, those that were given."""
    texts = zip(SPLITS, (options.train_path, options.validation_path, options.test_path), strict=True)
    return {split: Path(text) for split, text in texts if text}


def listed_labels(work: ImportWork) -> list[str]:
    """What labels.txt beside the training split says; empty when there is none inside the data
    roots, or it is too long."""
    file = Path(work.options.train_path).parent / "labels.txt"
    target = file.resolve()
    if not any(target.is_relative_to(root) for root in work.data_roots):
        return []
    try:
        if not target.is_file() or target.stat().st_size > MAX_LABELS_FILE_BYTES:
            return []
        lines = [line for line in target.read_text(encoding="utf-8").splitlines() if line]
        return lines if len(lines) <= MAX_LABELS else []
    except (OSError, UnicodeDecodeError) as error:
        raise ImportRefusedError(f"{file} cannot be read: {error}") from error


def _label_names(work: ImportWork, scans: Mapping[str, Scan]) -> dict[int, str]:
    """Of every label number that occurs: from labels.txt, from the records, or the number itself. Empty when there are
    too many to be labels."""
    used = sorted({number for scan in scans.values() for number in scan.labels})
    if len(used) > MAX_LABELS:
        return {}
    lines = listed_labels(work)
    if used and used[0] >= 0 and used[-1] < len(lines):
        return dict(enumerate(lines))
    names = {number: text for scan in scans.values() for number, text in scan.texts.items()}
    return {number: names.get(number, str(number)) for number in used}


def _named(scan: Scan, names: Mapping[int, str]) -> dict[str, int]:
    """Records by label name; names that stand for several numbers count them together."""
    counts: dict[str, int] = {}
    for number, name in names.items():
        counts[name] = counts.get(name, 0) + scan.labels[number]
    return counts
