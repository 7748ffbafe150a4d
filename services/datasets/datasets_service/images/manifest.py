"""What an import of images will do and how far it is, in one SQLite file beside the records.

The list of a million images does not belong in memory, what one attempt planned the next one goes on with, and a later
import of the same source takes over the records of images that have not changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from datasets_service.domain.splitting import SplitAlgorithm, SplitMethod, shares

SPLITS = ("train", "val", "test")
SCHEMA = """
CREATE TABLE labels (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE found (
    split INTEGER NOT NULL, label INTEGER NOT NULL, path BLOB NOT NULL,
    size INTEGER NOT NULL, modified_ns INTEGER NOT NULL, vector BLOB, rank INTEGER NOT NULL
);
CREATE TABLE images (
    position INTEGER PRIMARY KEY, split INTEGER NOT NULL, number INTEGER NOT NULL, section INTEGER NOT NULL,
    shard INTEGER NOT NULL, shards INTEGER NOT NULL, label INTEGER NOT NULL, path BLOB NOT NULL,
    size INTEGER NOT NULL, modified_ns INTEGER NOT NULL, vector BLOB, earlier_split INTEGER, earlier_number INTEGER
);
CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class FoundImage:
    """An image of the source; `split` is where it comes from, `path` is relative to that split's folder.

    `size` is in bytes, -1 for a listed file that is not there.
    """

    split: str
    label: int
    path: str
    size: int
    modified_ns: int
    vector: bytes | None = None


@dataclass(frozen=True)
class PlannedImage:
    """An image that will be record `number` of its split; `earlier` is (split, number) of the record that an earlier
    import made of it, if one did."""

    number: int
    label: int
    path: str
    size: int
    modified_ns: int
    vector: bytes | None
    earlier: tuple[str, int] | None = None


@dataclass(frozen=True)
class Part:
    """Neighbouring records of one record file, the first at `position` of all: the unit of work, and of going on after
    a kill. `section` is a label when there is a record file a label, 0 otherwise; `shard` of `shards` within it."""

    position: int
    split: str
    section: int
    shard: int
    shards: int
    images: Sequence[PlannedImage]


@dataclass
class State:
    """The records before `position` are durable; `digest` covers them, `writer` is what the writer needs to go on."""

    position: int = 0
    digest: str = ""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    unreadable_count: int = 0
    unreadable: list[str] = field(default_factory=list)
    writer: dict[str, Any] = field(default_factory=dict)

    def add(self, split: str, counts: Mapping[int, int]) -> None:
        """Count records of labels."""
        counted = self.counts.setdefault(split, {})
        for label, count in counts.items():
            # JSON has text keys only.
            counted[str(label)] = counted.get(str(label), 0) + count

    def label_counts(self, split: str, labels: Sequence[str]) -> dict[str, int]:
        """Records of each label, in label order."""
        counted = self.counts.get(split, {})
        return {name: counted.get(str(number), 0) for number, name in enumerate(labels)}


class Manifest:
    """One import's file. A plan is complete or absent; the state moves only together with records that are durable."""

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(f"file:{quote(str(file))}", uri=True, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -32000;")

    def close(self) -> None:
        """Leaves one file that can be read where nothing may be written."""
        self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.close()

    @property
    def is_planned(self) -> bool:
        return bool(self._db.execute("PRAGMA user_version").fetchone()[0])

    def plan(
        self,
        labels: Sequence[str],
        found: Iterable[FoundImage],
        algorithm: SplitAlgorithm,
        percentages: Mapping[str, int],
        seed: int,
        shards: int,
        *,
        by_class: bool,
        earlier: Path | None = None,
    ) -> None:
        """Decide on split, order and record file of every image: the same for the same images and seed, whatever order
        they are found in. `earlier` is the manifest of an import of the same folders."""
        db = self._db
        # Readable from a transaction only when it was attached before.
        db.execute("ATTACH DATABASE ? AS earlier", (f"file:{quote(str(earlier))}?mode=ro" if earlier else ":memory:",))
        db.execute("BEGIN IMMEDIATE")
        try:
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.executemany("INSERT INTO labels VALUES (?, ?)", enumerate(labels))
            db.executemany(
                "INSERT INTO found VALUES (?, ?, ?, ?, ?, ?, ?)", (_found_columns(image, seed) for image in found)
            )
            if algorithm.method is not SplitMethod.BY_NAME:
                self._hold_out(algorithm, percentages)
            db.execute(_ORDER, {"shards": shards, "by_class": by_class})
            if earlier:
                db.execute(_TAKE_OVER)
                db.execute("INSERT INTO state VALUES ('earlier', ?)", (str(earlier.parent),))
            db.execute("DROP TABLE found")
            db.execute("PRAGMA user_version = 1")
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        finally:
            db.execute("DETACH DATABASE earlier")

    def _hold_out(self, algorithm: SplitAlgorithm, percentages: Mapping[str, int]) -> None:
        """Move images that were found for training to validation and test."""
        db = self._db
        counts = dict(db.execute("SELECT label, COUNT(*) FROM found WHERE split = 0 GROUP BY label"))
        stratified = algorithm.method is not SplitMethod.RANDOM
        sizes = counts if stratified else {_ALL: sum(counts.values())}
        taken = dict.fromkeys(sizes, 0)
        held_out: dict[str, dict[int, int]] = {}
        for split in ("test", "val"):
            held_out[split] = shares(sizes, percentages[split], taken)
            taken = {label: taken[label] + held_out[split][label] for label in sizes}
        db.execute("CREATE TEMP TABLE shares (label INTEGER PRIMARY KEY, val INTEGER, test INTEGER)")
        db.executemany(
            "INSERT INTO shares VALUES (?, ?, ?)",
            ((label, held_out["val"][label], held_out["test"][label]) for label in sizes),
        )
        db.execute(
            _HOLD_OUT.format(stratum="label" if stratified else _ALL),
            {"fold": algorithm.fold - 1, "folds": algorithm.folds},
        )
        db.execute("DROP TABLE shares")

    @property
    def earlier(self) -> str:
        """Folder of the dataset that records are taken over from; empty when there is none."""
        row = self._db.execute("SELECT value FROM state WHERE name = 'earlier'").fetchone()
        return str(row[0]) if row else ""

    @property
    def labels(self) -> list[str]:
        """In label order."""
        return [name for (name,) in self._db.execute("SELECT name FROM labels ORDER BY number")]

    def totals(self) -> dict[str, int]:
        """Images of each split that has any, in order."""
        rows = self._db.execute("SELECT split, COUNT(*) FROM images GROUP BY split ORDER BY split")
        return {SPLITS[split]: count for split, count in rows}

    def training_labels(self) -> set[int]:
        """Numbers of the labels that training has images of."""
        return {label for (label,) in self._db.execute("SELECT DISTINCT label FROM images WHERE split = 0")}

    def parts(self, position: int, part_images: int) -> Iterator[Part]:
        """All parts from `position`, where one begins; those before are left out, no others change."""
        rows = self._db.execute(
            "SELECT position, split, section, shard, shards, number, label, path, size, modified_ns, vector,"
            " earlier_split, earlier_number FROM images WHERE position >= ? ORDER BY position",
            (position,),
        )
        for (split, section, shard, shards), group in groupby(rows, key=lambda row: row[1:5]):
            while chunk := list(islice(group, part_images)):
                yield Part(chunk[0][0], SPLITS[split], section, shard, shards, [_planned(*row[5:]) for row in chunk])

    def load(self) -> tuple[State, np.ndarray | None]:
        """Where to go on, and the sum of the training pixels so far."""
        values = dict(self._db.execute("SELECT name, value FROM state"))
        state = State(**json.loads(values["state"])) if "state" in values else State()
        return state, np.frombuffer(values["pixel_sum"], np.uint64).copy() if "pixel_sum" in values else None

    def save(self, state: State, pixel_sum: np.ndarray) -> None:
        """Durable when it returns."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(
            "INSERT OR REPLACE INTO state VALUES (?, ?)",
            [("state", json.dumps(asdict(state))), ("pixel_sum", pixel_sum.tobytes())],
        )
        self._db.execute("COMMIT")


_ALL = -1
# Of every stratum in the order of its ranks: first the test share, then the validation share, or every k-th of the
# others. The label shifts where folds begin, so that many small labels fill all folds alike.
_HOLD_OUT = """
UPDATE found SET split = chosen.split FROM (
    SELECT place.row, CASE
        WHEN number < shares.test THEN 2
        WHEN number < shares.test + shares.val THEN 1
        WHEN :folds AND (number - shares.test + place.label) % :folds = :fold THEN 1
        ELSE 0 END AS split
    FROM (
        SELECT rowid AS row, label, {stratum} AS stratum,
            ROW_NUMBER() OVER (PARTITION BY {stratum} ORDER BY rank, path) - 1 AS number
        FROM found WHERE split = 0
    ) AS place JOIN shares ON shares.label = place.stratum
) AS chosen WHERE found.rowid = chosen.row AND chosen.split != 0
"""
# Mixed by rank, so that readers who read in sequence see all labels; a section is a label when files are by class.
_ORDER = """
INSERT INTO images (
    position, split, number, section, shard, shards, label, path, size, modified_ns, vector
)
SELECT ROW_NUMBER() OVER (ORDER BY split, section, rank, path) - 1, split,
    ROW_NUMBER() OVER (PARTITION BY split ORDER BY section, rank, path) - 1, section,
    place * MIN(:shards, files) / files, MIN(:shards, files), label, path, size, modified_ns, vector
FROM (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY split, section ORDER BY rank, path) - 1 AS place,
        COUNT(*) OVER (PARTITION BY split, section) AS files
    FROM (SELECT *, CASE WHEN :by_class THEN label ELSE 0 END AS section FROM found)
)
"""

_TAKE_OVER = """
UPDATE images SET earlier_split = old.split, earlier_number = old.number FROM earlier.images AS old
WHERE old.path = images.path AND old.size = images.size AND old.modified_ns = images.modified_ns
"""


def _planned(
    number: int,
    label: int,
    path: bytes,
    size: int,
    modified_ns: int,
    vector: bytes | None,
    earlier_split: int | None,
    earlier_number: int | None,
) -> PlannedImage:
    earlier = None if earlier_split is None or earlier_number is None else (SPLITS[earlier_split], earlier_number)
    return PlannedImage(number, label, os.fsdecode(path), size, modified_ns, vector, earlier)


def _found_columns(image: FoundImage, seed: int) -> tuple[Any, ...]:
    path = os.fsencode(image.path)
    rank = hashlib.blake2b(b"%d\0" % seed + path, digest_size=8).digest()
    return (
        SPLITS.index(image.split),
        image.label,
        path,
        image.size,
        image.modified_ns,
        image.vector,
        int.from_bytes(rank, "big", signed=True),
    )
