"""`dlmesh search`: hyperparameter searches, looked at and steered."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
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
_LEVELS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH, _BAR_WIDTH = 60, 30


def _known_searches(incomplete: str) -> list[str]:
    """For completion: a platform that does not answer has none."""
    try:
        client = platform_client(home_folder(), patience_seconds=0.0, timeout_seconds=2.0)
        return [one["hpoName"] for one in client.get("/hypersearch") if one["hpoName"].startswith(incomplete)]
    except Exception:
        return []


Name = Annotated[str, typer.Argument(help="the search's name", autocompletion=_known_searches)]


@app.command("list")
@plain_errors
def list_searches() -> None:
    """All searches that you may see."""
    table = Table("search", "state", "trials", "best", "algorithm", "for", "says")
    for one in platform_client(home_folder()).get("/hypersearch"):
        table.add_row(
            escape(one["hpoName"]),
            _coloured(one["state"]),
            one["progress"],
            _value(one.get("best")),
            escape(one["algorithm"]),
            one["duration"],
            escape(one["statusMessage"]),
        )
    out.print(table if table.row_count else "No searches. docs/tuning.md has one to begin with.")


@app.command()
@plain_errors
def show(
    name: Name,
    trials: Annotated[int, typer.Option("--trials", "-n", min=1, max=1000, help="how many of the best")] = 10,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="until it has ended")] = False,
) -> None:
    """How far a search is, its best trials, and which parameters matter."""
    client = platform_client(home_folder())
    if not watch:
        out.print(_view(client, name, trials)[0])
        return
    view, state = _view(client, name, trials)
    with Live(view, console=out, auto_refresh=False) as live:
        while state not in ENDED:
            time.sleep(1.0)
            view, state = _view(client, name, trials)
            live.update(view, refresh=True)


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


def _view(client: Client, name: str, trials: int) -> tuple[RenderableType, str]:
    """What people look at, and the state."""
    path = f"/hypersearch/{segment(name)}"
    detail = client.get(path)
    ended, _, most = detail["progress"].partition("/")
    aim = f"{detail['objective'].lower()} {detail['objectiveMetric']}"
    counts = f"{detail['progress']} trials in {detail['duration']}, {detail['failed']} failed"
    head = (
        f"[bold]{escape(name)}[/] {_coloured(detail['state'])}  {counts}; {escape(detail['algorithm'])}, {escape(aim)}"
    )
    parts: list[RenderableType] = [Text.from_markup(head)]
    if most != "-":
        # On a line of its own.
        bar = Table.grid()
        bar.add_row(ProgressBar(total=float(most), completed=float(ended), width=_CURVE_WIDTH))
        parts.append(bar)
    if detail["statusMessage"]:
        parts.append(Text(detail["statusMessage"], style="dim"))
    values = [one["metricVal"] for one in detail["experiments"] if one["state"] == "FINISHED" and "metricVal" in one]
    if len(values) > 1:
        parts.append(Text(f"best so far  {_curve(values, is_maximized=detail['objective'] == 'Maximize')}"))
    best = client.get(f"{path}/experiments?sort=metricVal&length={trials}")
    if best:
        parts.append(_trials_table(best))
    try:
        parts.append(_importance_table(client.get(f"{path}/importance")))
    except ApiError as error:
        # Too few trials yet.
        if error.status != 400:
            raise
    return Group(*parts), str(detail["state"])


def _trials_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(one["name"] for trial in trials for one in trial["hyperParams"]))
    shown = names if out.width >= WIDE_COLUMNS else names[:5]
    table = Table("trial", "value", *map(escape, shown), *(["..."] if len(shown) < len(names) else []))
    for trial in trials:
        values = {one["name"]: one["fixedVal"] for one in trial["hyperParams"]}
        table.add_row(str(trial["id"]), _value(trial), *(escape(_short(values.get(name, ""))) for name in shown))
    return table


def _importance_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("parameter", "what it explains", "")
    for one in rows:
        part = float(one["importance"])
        table.add_row(escape(one["name"]), "█" * round(part * _BAR_WIDTH), f"{part:.0%}")
    return table


def _curve(values: Sequence[float], *, is_maximized: bool) -> str:
    """The best value so far, from the first trial to the last, a character for some of them."""
    better = max if is_maximized else min
    best = [values[0]]
    for value in values[1:]:
        best.append(better(best[-1], value))
    width = min(_CURVE_WIDTH, len(best))
    sampled = [best[round(index * (len(best) - 1) / max(1, width - 1))] for index in range(width)]
    low, high = min(sampled), max(sampled)
    steps = [(value - low) / (high - low) if high > low else 0.0 for value in sampled]
    return "".join(_LEVELS[min(len(_LEVELS) - 1, int(step * len(_LEVELS)))] for step in steps) + f"  {best[-1]:.6g}"


def _value(trial: Mapping[str, Any] | None) -> str:
    value = (trial or {}).get("metricVal")
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


def _short(text: str) -> str:
    try:
        return f"{float(text):.6g}"
    except ValueError:
        return text if len(text) <= 20 else f"{text[:17]}..."


def _coloured(state: str) -> str:
    return f"[{COLOURS.get(state, 'default')}]{escape(state)}[/]"
