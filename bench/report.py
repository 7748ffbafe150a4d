"""The tables of docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

REPORT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Row:
    """One line of the report; `target` is what the project promises, `met` whether it was kept, None where nothing is
    promised."""

    what: str
    measured: str
    against: str
    ratio: str
    target: str
    met: bool | None

    @property
    def cells(self) -> tuple[str, ...]:
        kept = {True: "yes", False: "NO", None: ""}[self.met]
        return self.what, self.measured, self.against, self.ratio, self.target, kept


def announce(what: str) -> None:
    """Say on stderr what is measured now: sections take minutes."""
    Console(stderr=True).print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {what}")


def publish(section: str, rows: Sequence[Row]) -> None:
    """Print the table and write it between the markers of its section."""
    table = Table("what", "dlmesh", "against", "ratio", "promised", "kept", title=section)
    for row in rows:
        table.add_row(*row.cells)
    Console().print(table)
    versions = f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}"
    lines = [
        f"Measured {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())} with `make bench`; {versions}.",
        "",
        "| what | dlmesh | against | ratio | promised | kept |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(row.cells)} |" for row in rows),
    ]
    begin, end = f"<!-- measured {section}: begin -->", f"<!-- measured {section}: end -->"
    text = REPORT.read_text()
    before, found, rest = text.partition(begin)
    if not found:
        raise LookupError(f"{REPORT} has no marker {begin}")
    _, _, after = rest.partition(end)
    REPORT.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}")
