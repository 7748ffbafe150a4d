"""The images of an import and their boxes, in one SQLite file: millions of them do not belong in memory."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets_service.domain.splitting import SplitAlgorithm, SplitMethod, shares
from datasets_service.images.class_folders import split_in_name

MAX_BOXES = 10_000
MAX_NAME_CHARACTERS = 128

# `source` is the split that was given the source, `split` where an image goes. `category` is the class as the source
# calls it at first, its name in the end.
SCHEMA = """
CREATE TABLE images (
    number INTEGER PRIMARY KEY, source TEXT NOT NULL, key TEXT NOT NULL, name TEXT NOT NULL, path TEXT NOT NULL,
    split TEXT NOT NULL, problem TEXT, stratum TEXT NOT NULL DEFAULT '', rank BLOB, UNIQUE (source, key)
);
CREATE TABLE boxes (
    source TEXT NOT NULL, key TEXT NOT NULL, category TEXT NOT NULL,
    xmin REAL NOT NULL, ymin REAL NOT NULL, xmax REAL NOT NULL, ymax REAL NOT NULL,
    difficult INTEGER NOT NULL, crowd INTEGER NOT NULL, problem TEXT
);
"""


@dataclass(frozen=True)
class RawBox:
    """A box as the source has it: pixels from 0, the far edges exclusive, perhaps outside of its image.

    `problem` says why it is none.
    """

    category: str = ""
    xmin: float = 0
    ymin: float = 0
    xmax: float = 0
    ymax: float = 0
    is_difficult: bool = False
    is_crowd: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class SourceImage:
    """One image; its boxes are found by `source` and `key`. With a `problem` it is left out."""

    source: str
    key: str
    name: str
    path: str
    problem: str | None = None


def is_text(text: str) -> bool:
    """Whether `text` can be written as UTF-8: names of files and JSON strings may be anything."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_name(text: str) -> bool:
    """Whether `text` may be the name of a class."""
    return 0 < len(text) <= MAX_NAME_CHARACTERS and text.isprintable()


class Catalog:
    """One attempt's file: nothing in it outlives a kill."""

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(file, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -32000;")
        self._db.executescript(SCHEMA)
        self._db.execute("BEGIN")

    def close(self) -> None:
        self._db.close()

    def add_image(self, image: SourceImage, split: str) -> bool:
        """False, and nothing changes, when its source has an image of this key."""
        added = self._db.execute(
            "INSERT OR IGNORE INTO images (source, key, name, path, split, problem) VALUES (?, ?, ?, ?, ?, ?)",
            (image.source, image.key, image.name, image.path, split, image.problem),
        )
        return added.rowcount > 0

    def leave_out(self, source: str, key: str, problem: str) -> None:
        """An image has a problem."""
        self._db.execute(
            "UPDATE images SET name = key, problem = ? WHERE source = ? AND key = ?", (problem, source, key)
        )

    def assign(self, source: str, key: str, split: str) -> str | None:
        """Put an image that is in no split into this one; the split that it was in, None for an unknown image."""
        row = self._db.execute("SELECT split FROM images WHERE source = ? AND key = ?", (source, key)).fetchone()
        if row and not row[0]:
            self._db.execute("UPDATE images SET split = ? WHERE source = ? AND key = ?", (split, source, key))
        return row[0] if row else None

    def forget_unassigned(self) -> None:
        """Remove the images that are in no split."""
        self._db.execute("DELETE FROM images WHERE split = ''")

    def add_boxes(self, source: str, boxes: Iterable[tuple[str, RawBox]]) -> None:
        """Boxes with the keys of their images, in order."""
        self._db.executemany(
            "INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (source, key, b.category, b.xmin, b.ymin, b.xmax, b.ymax, b.is_difficult, b.is_crowd, b.problem)
                for key, b in boxes
            ),
        )

    def name_categories(self, source: str, names: Mapping[str, str]) -> None:
        """Call the categories of a source by their names; one without a name is a problem."""
        db = self._db
        db.execute("CREATE TEMP TABLE names (category TEXT PRIMARY KEY, name TEXT NOT NULL)")
        db.executemany("INSERT INTO names VALUES (?, ?)", names.items())
        db.execute(
            "UPDATE boxes SET problem = COALESCE(problem, 'category ' || category || ' is unknown')"
            " WHERE source = ? AND category NOT IN (SELECT category FROM names)",
            (source,),
        )
        db.execute(
            "UPDATE boxes SET category = names.name FROM names"
            " WHERE boxes.source = ? AND names.category = boxes.category AND problem IS NULL",
            (source,),
        )
        db.execute("DROP TABLE names")

    def locate(self, source: str, path_of: Callable[[str], str]) -> None:
        """Give the images of a source their paths, by name."""
        self._db.create_function("path_of", 1, path_of)
        self._db.execute("UPDATE images SET path = path_of(name) WHERE source = ? AND problem IS NULL", (source,))

    def names(self, source: str, limit: int) -> list[str]:
        """The names of the first images of a source."""
        rows = self._db.execute(
            "SELECT name FROM images WHERE source = ? AND problem IS NULL ORDER BY number LIMIT ?", (source, limit)
        )
        return [name for (name,) in rows]

    def settle(self) -> None:
        """When all is there: find the problems that only show together, and forget the boxes of what is left out."""
        for statement in _SETTLE:
            self._db.execute(statement, {"max_boxes": MAX_BOXES} if ":max_boxes" in statement else {})

    def categories(self, source: str, limit: int) -> list[str]:
        """Names of the classes of a source that have boxes, sorted, `limit` at most."""
        rows = self._db.execute(
            "SELECT DISTINCT category FROM boxes WHERE source = ? ORDER BY category LIMIT ?", (source, limit)
        )
        return [category for (category,) in rows]

    def split(self, algorithm: SplitAlgorithm, percentages: Mapping[str, int], seed: int) -> None:
        """Move images from training to validation and test: the same for the same images and seed.

        A stratum is an image's rarest class. Its images are ranked by a hash of seed and name.
        """
        db = self._db
        if algorithm.method is SplitMethod.BY_NAME:
            db.create_function("split_in_name", 1, split_in_name, deterministic=True)
            db.execute("UPDATE images SET split = split_in_name(name) WHERE source = 'train' AND problem IS NULL")
            return
        db.create_function("rank", 1, lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
        db.execute("UPDATE images SET rank = rank(name) WHERE source = 'train' AND problem IS NULL")
        if algorithm.method is not SplitMethod.RANDOM:
            db.execute(_STRATA)
        in_training = "FROM images WHERE split = 'train' AND problem IS NULL"
        sizes = dict(db.execute(f"SELECT stratum, COUNT(*) {in_training} GROUP BY stratum"))
        test = shares(sizes, percentages["test"], dict.fromkeys(sizes, 0))
        validation = shares(sizes, percentages["val"], test)
        db.execute("CREATE TEMP TABLE shares (stratum TEXT PRIMARY KEY, test INTEGER, val INTEGER)")
        db.executemany("INSERT INTO shares VALUES (?, ?, ?)", ((one, test[one], validation[one]) for one in sizes))
        db.execute(_SPLIT, {"fold": algorithm.fold - 1, "folds": algorithm.folds})

    def shared_image(self) -> str | None:
        """The path of an image that is in two splits."""
        row = self._db.execute(
            "SELECT path FROM images WHERE problem IS NULL GROUP BY path HAVING COUNT(DISTINCT split) > 1 LIMIT 1"
        ).fetchone()
        return row[0] if row else None

    def count(self, source: str | None = None) -> int:
        """Images, those with problems too."""
        query = "SELECT COUNT(*) FROM images WHERE source = COALESCE(?, source)"
        count: int = self._db.execute(query, (source,)).fetchone()[0]
        return count

    def keys(self, source: str) -> Iterator[str]:
        """Keys of the images of a source that have no problem."""
        rows = self._db.execute(
            "SELECT key FROM images WHERE source = ? AND problem IS NULL ORDER BY number", (source,)
        )
        return (key for (key,) in rows)

    def images(self, split: str) -> Iterator[SourceImage]:
        """The images of a split by name, those with problems too."""
        rows = self._db.execute(
            "SELECT source, key, name, path, problem FROM images WHERE split = ? ORDER BY name, path", (split,)
        )
        return (SourceImage(*row) for row in rows)

    def boxes(self, image: SourceImage) -> Iterator[RawBox]:
        """The boxes of an image, in the order of the source."""
        rows = self._db.execute(
            "SELECT category, xmin, ymin, xmax, ymax, difficult, crowd FROM boxes WHERE source = ? AND key = ?"
            " ORDER BY rowid",
            (image.source, image.key),
        )
        return (
            RawBox(category, xmin, ymin, xmax, ymax, bool(difficult), bool(crowd))
            for category, xmin, ymin, xmax, ymax, difficult, crowd in rows
        )


_SETTLE = (
    "CREATE INDEX boxes_of_image ON boxes (source, key)",
    """INSERT OR IGNORE INTO images (source, key, name, path, split, problem)
    SELECT source, key, 'image ' || key, '', source, 'it has annotations and is not listed'
    FROM (SELECT DISTINCT source, key FROM boxes)""",
    """UPDATE images SET problem = found.problem FROM (
        SELECT source, key, MIN(problem) AS problem FROM boxes WHERE problem IS NOT NULL GROUP BY source, key
    ) AS found WHERE images.source = found.source AND images.key = found.key AND images.problem IS NULL""",
    """UPDATE images SET problem = 'it has more than ' || :max_boxes || ' boxes' FROM (
        SELECT source, key FROM boxes GROUP BY source, key HAVING COUNT(*) > :max_boxes
    ) AS found WHERE images.source = found.source AND images.key = found.key AND images.problem IS NULL""",
    """UPDATE images SET problem = 'it is listed twice' FROM (
        SELECT number, ROW_NUMBER() OVER (PARTITION BY source, path ORDER BY number) AS nth
        FROM images WHERE problem IS NULL
    ) AS found WHERE images.number = found.number AND nth > 1""",
    """DELETE FROM boxes WHERE EXISTS (
        SELECT 1 FROM images
        WHERE images.source = boxes.source AND images.key = boxes.key AND images.problem IS NOT NULL
    )""",
    "CREATE INDEX images_in_order ON images (split, name, path)",
)
_STRATA = """
UPDATE images SET stratum = rarest.category FROM (
    SELECT key, category, ROW_NUMBER() OVER (PARTITION BY key ORDER BY frequency, category) AS nth
    FROM (SELECT DISTINCT key, category FROM boxes WHERE source = 'train') JOIN (
        SELECT category AS counted, COUNT(*) AS frequency FROM boxes WHERE source = 'train' GROUP BY category
    ) ON counted = category
) AS rarest WHERE images.source = 'train' AND images.key = rarest.key AND nth = 1
"""
# Of every stratum in the order of its ranks: first the test share, then the validation share. Folds are dealt to what
# is not tested, one stratum after the other, so that they are of the same size whatever the strata are.
_SPLIT = """
UPDATE images SET split = chosen.split FROM (
    SELECT number, CASE
        WHEN nth < test THEN 'test'
        WHEN nth < test + val THEN 'val'
        WHEN :folds AND (ROW_NUMBER() OVER (PARTITION BY nth < test ORDER BY stratum, nth) - 1) % :folds = :fold
            THEN 'val'
        ELSE 'train' END AS split
    FROM (
        SELECT number, images.stratum, test, val,
            ROW_NUMBER() OVER (PARTITION BY images.stratum ORDER BY rank, name) - 1 AS nth
        FROM images JOIN shares ON shares.stratum = images.stratum WHERE split = 'train' AND problem IS NULL
    )
) AS chosen WHERE images.number = chosen.number AND chosen.split != 'train'
"""
