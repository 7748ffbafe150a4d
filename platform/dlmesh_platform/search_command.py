"""`dlmesh search`: hyperparameter searches, looked at and steered."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, takewhile
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dlmesh_platform.client import ApiError, Client, segment
from dlmesh_platform.terminal import WIDE_COLUMNS, home_folder, out, plain_errors, platform_client

app = typer.Typer(help="Hyperparameter searches: look at them, stop and restart them.", no_args_is_help=True)
COLOURS = {"RUNNING": "green", "FINISHED": "bright_blue", "FAILED": "red", "STOPPED": "yellow"}
ENDED = ("FINISHED", "FAILED", "STOPPED")
_CURVE_WIDTH, _BAR_WIDTH = 60, 30
_LEVELS = ("▁▂▃▄▅▆▇█", "_.:-=+*#")
WATCH_SECONDS = 1.0
# Which parameters matter is thought out by what also thinks out searches.
IMPORTANCE_SECONDS = 30.0
# The curve of a larger study would be read for longer than people wait.
MAX_CURVE_TRIALS, PAGE = 5000, 1000


def _known_searches(incomplete: str) -> list[str]:
    """For completion: a platform that does not answer has none."""
    try:
        client = platform_client(home_folder(), patience_seconds=0.0, timeout_seconds=2.0)
        return [one["hpoName"] for one in client.get("/hypersearch?length=0") if one["hpoName"].startswith(incomplete)]
    except Exception:
        return []


Name = Annotated[str, typer.Argument(help="the search's name", autocompletion=_known_searches)]


@app.command("list")
@plain_errors
def list_searches() -> None:
    """All searches that you may see."""
    is_wide = out.width >= WIDE_COLUMNS
    table = Table("search", "state", "trials", "best", "algorithm", "for", *(["says"] if is_wide else []))
    for column in table.columns:
        # What is typed into other commands, and what is long, is never cut off.
        column.no_wrap = column.header in ("state", "trials", "best", "for")
        column.overflow = "fold"
    said = []
    for one in platform_client(home_folder()).get("/hypersearch?length=0"):
        name, says = escape(one["hpoName"]), escape(_first_line(one["statusMessage"]))
        table.add_row(
            name,
            _coloured(one["state"]),
            one["progress"],
            _value(one.get("best")),
            escape(one["algorithm"]),
            one["duration"],
            *([says] if is_wide else []),
        )
        if says and one["state"] not in ("FINISHED", "STOPPED"):
            said.append(f"{name}: {says}")
    out.print(table if table.row_count else "No searches. docs/tuning.md has one to begin with.")
    if not is_wide:
        # No room for it in the table.
        for line in said:
            out.print(line)


@app.command()
@plain_errors
def show(
    name: Name,
    trials: Annotated[int, typer.Option("--trials", "-n", min=1, max=1000, help="how many of the best")] = 10,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="until it has ended")] = False,
) -> None:
    """How far a search is, its best trials, and which parameters matter."""
    view = SearchView(platform_client(home_folder()), name, trials)
    if watch and out.is_terminal and not out.is_dumb_terminal:
        with Live(view.read(), console=out, auto_refresh=False) as live:
            while view.state not in ENDED:
                time.sleep(WATCH_SECONDS)
                live.update(view.read(), refresh=True)
        return
    shown = view.read()
    printed = ""
    while watch and view.state not in ENDED:
        # Where nothing can be drawn over: a line a change.
        if view.line != printed:
            printed = view.line
            out.print(printed, markup=False, soft_wrap=True)
        time.sleep(WATCH_SECONDS)
        shown = view.read()
    out.print(shown)


@app.command()
@plain_errors
def stop(
    name: Name, force: Annotated[bool, typer.Option("--force", help="do not wait for its trials")] = False
) -> None:
    """Stop a search; its trials are asked to end."""
    platform_client(home_folder()).put(f"/hypersearch/{segment(name)}{'/force' if force else ''}")
    out.print(f"{name} is being stopped; dlmesh search restart {name} goes on with it", markup=False)


@app.command()
@plain_errors
def restart(
    name: Name,
    trials: Annotated[int | None, typer.Option(help="trials in all from now on; -1 is no limit")] = None,
    minutes: Annotated[float | None, typer.Option(help="minutes in all from now on; -1 is no limit")] = None,
) -> None:
    """Go on with a search that has ended."""
    query = {"maxJobNum": trials, "maxRunTime": minutes}
    words = "&".join(f"{key}={value}" for key, value in query.items() if value is not None)
    platform_client(home_folder()).put(f"/hypersearch/{segment(name)}/restart{'?' * bool(words)}{words}")
    out.print(f"{name} goes on; dlmesh search show {name} --watch follows it", markup=False)


@app.command()
@plain_errors
def delete(name: Name) -> None:
    """Delete a search that has ended, with all its trials."""
    platform_client(home_folder()).delete(f"/hypersearch/{segment(name)}")
    out.print(f"{name} is deleted", markup=False)


class SearchView:
    """A search as people look at it, once or again and again: each trial is read once, and importance rarely."""

    def __init__(self, client: Client, name: str, trials: int) -> None:
        self._client, self._name, self._trials = client, name, trials
        self._path = f"/hypersearch/{segment(name)}"
        self._history: list[float] = []
        self._read_trials = 0
        self._importance: Sequence[Mapping[str, Any]] = []
        self._asked_at = -math.inf
        self.state, self.line = "", ""

    def read(self) -> RenderableType:
        """As it is now; `state` and `line`, all of it in a few words, are told, too."""
        detail = self._client.get(self._path, length="1")
        best = detail.get("best")
        self.state = str(detail["state"])
        self.line = f"{self._name} {self.state}  {detail['progress']} trials, {detail['failed']} failed"
        if _value(best):
            self.line += f", best {_value(best)} in trial {best['id']}"
        parts = [*_head(self._name, detail)]
        if curve := self._curve(detail):
            parts.append(Text(curve))
        if trials := self._client.get(f"{self._path}/experiments?sort=metricVal&length={self._trials}"):
            parts.append(_trials_table(trials))
        self._ask_importance()
        if self._importance:
            parts.append(_importance_table(self._importance))
        return Group(*parts)

    def _curve(self, detail: Mapping[str, Any]) -> str:
        """The best value so far: over the trials before the first that runs, and of all."""
        best = _value(detail.get("best"))
        drawn = ""
        if best and detail["experimentCount"] <= MAX_CURVE_TRIALS:
            self._read_history()
            drawn = _curve(self._history, is_maximized=detail["objective"] == "Maximize")
        return " ".join(filter(None, ["best so far ", drawn, best])) if best else ""

    def _read_history(self) -> None:
        """What has ended since it was read last."""
        while True:
            page = self._client.get(f"{self._path}/experiments?start={self._read_trials}&length={PAGE}")
            ended = list(takewhile(lambda one: one["state"] in ENDED, page))
            self._read_trials += len(ended)
            self._history += [one["metricVal"] for one in ended if one["state"] == "FINISHED" and "metricVal" in one]
            if len(ended) < PAGE:
                return

    def _ask_importance(self) -> None:
        if self.state not in ENDED and time.monotonic() - self._asked_at < IMPORTANCE_SECONDS:
            return
        self._asked_at = time.monotonic()
        try:
            self._importance = self._client.get(f"{self._path}/importance")
        except ApiError as error:
            # Too few trials yet, or nobody who could think about it now.
            if error.status not in (400, 503):
                raise


def _head(name: str, detail: Mapping[str, Any]) -> Iterator[RenderableType]:
    ended, _, most = detail["progress"].partition("/")
    aim = f"{detail['objective'].lower()} {detail['objectiveMetric']}"
    counts = f"{detail['progress']} trials in {detail['duration']}, {detail['failed']} failed"
    yield Text.from_markup(
        f"[bold]{escape(name)}[/] {_coloured(detail['state'])}  {counts}; {escape(detail['algorithm'])}, {escape(aim)}"
    )
    if most != "-":
        # On a line of its own.
        bar = Table.grid()
        bar.add_row(ProgressBar(total=float(most), completed=float(ended), width=_CURVE_WIDTH))
        yield bar
    if detail["statusMessage"]:
        yield Text(detail["statusMessage"], style="dim")


def _trials_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(one["name"] for trial in trials for one in trial["hyperParams"]))
    shown = names if out.width >= WIDE_COLUMNS else names[:5]
    table = Table("trial", "value")
    for name in [*shown, *(["..."] if len(shown) < len(names) else [])]:
        # Whole, as some may differ in their last letter only.
        table.add_column(escape(name), overflow="fold")
    for trial in trials:
        values = {one["name"]: one["fixedVal"] for one in trial["hyperParams"]}
        table.add_row(str(trial["id"]), _value(trial), *(escape(_short(values.get(name, ""))) for name in shown))
    return table


def _importance_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("parameter", "what it explains", "")
    for one in rows:
        part = float(one["importance"])
        table.add_row(escape(one["name"]), _levels()[-1] * round(part * _BAR_WIDTH), f"{part:.0%}")
    return table


def _curve(values: Sequence[float], *, is_maximized: bool) -> str:
    """The best value so far, from the first trial to the last, a character for some of them; empty for one value."""
    if len(values) < 2:
        return ""
    best = list(accumulate(values, max if is_maximized else min))
    width = min(_CURVE_WIDTH, len(best))
    sampled = [best[round(index * (len(best) - 1) / (width - 1))] for index in range(width)]
    low, high = min(sampled), max(sampled)
    steps = [(value - low) / (high - low) if high > low else 0.0 for value in sampled]
    levels = _levels()
    return "".join(levels[min(len(levels) - 1, int(step * len(levels)))] for step in steps)


def _levels() -> str:
    """From low to high, in what the terminal can print."""
    return _LEVELS[out.options.ascii_only]


def _value(trial: Mapping[str, Any] | None) -> str:
    value = (trial or {}).get("metricVal")
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _short(text: str) -> str:
    try:
        return f"{float(text):.6g}"
    except ValueError:
        return text if len(text) <= 20 else f"{text[:17]}..."


def _coloured(state: str) -> str:
    return f"[{COLOURS.get(state, 'default')}]{escape(state)}[/]"
