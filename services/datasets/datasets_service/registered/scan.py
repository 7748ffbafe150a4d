"""Scanning existing records in a process of its own: a truncated file that is mapped kills whoever reads it."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from datasets_service.importers.base import ImportRefusedError

PROGRESS_BYTES = 32 * 1024 * 1024


@dataclass
class Scan:
    """What was found in one split. `labels` counts records by label number, `texts` names numbers where records do;
    `extremes` are the (smallest, largest) of width, height and channels."""

    records: int = 0
    unlabelled: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    texts: dict[int, str] = field(default_factory=dict)
    extremes: dict[str, tuple[int, int]] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)

    def add_image(self, width: int, height: int, channels: int) -> None:
        """Widen the extremes; 0 is unknown."""
        for name, value in (("width", width), ("height", height), ("channels", channels)):
            if value > 0:
                least, most = self.extremes.get(name, (value, value))
                self.extremes[name] = (min(least, value), max(most, value))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "digest": self.digest.hexdigest()}


Scanner = Callable[[Path], Iterator[int | Scan]]


def scan_apart(scanner: Scanner, path: Path, progress: Callable[[int], None]) -> Scan:
    """Run `scanner`, which yields bytes read since it did last and at its end the Scan, with `digest` as text.

    ImportRefusedError with what it raised, or when it died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_scan, args=(scanner, path, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            said = ours.recv()
            if isinstance(said, int):
                progress(said)
            elif isinstance(said, Scan):
                return said
            else:
                raise ImportRefusedError(str(said))
    except EOFError:
        raise ImportRefusedError(f"{path} is damaged: reading it to its end crashes (is it truncated?)") from None
    finally:
        # Whatever it still does, nobody waits for it.
        process.kill()
        process.join()
        ours.close()


def _scan(scanner: Scanner, path: Path, pipe: Connection) -> None:
    pending = 0
    try:
        for said in scanner(path):
            if isinstance(said, int):
                pending += said
                if pending >= PROGRESS_BYTES:
                    pipe.send(pending)
                    pending = 0
            else:
                pipe.send(said)
    # Whatever the data makes its reader raise is what is wrong with the data.
    except Exception as error:
        pipe.send(str(error) or type(error).__name__)
