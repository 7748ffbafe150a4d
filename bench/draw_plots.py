"""`python draw_plots.py FOLDER < figures.json`: the plots of docs/scheduling.md. Needs matplotlib, nothing of ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "dlmesh"
import matplotlib.pyplot as plt  # noqa: E402


def draw_load(load: dict[str, list[float]], file: Path) -> None:
    """Slots in use and jobs that wait, over time."""
    figure, (upper, lower) = plt.subplots(2, 1, sharex=True, figsize=(8, 4.5))
    upper.plot(load["hours"], [100 * part for part in load["used"]], linewidth=0.8)
    upper.set_ylabel("slots in use, %")
    upper.set_ylim(0, 103)
    lower.plot(load["hours"], load["waiting"], linewidth=0.8, color="tab:orange")
    lower.set_ylabel("jobs that wait")
    lower.set_xlabel("hours")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    _save(figure, file)


def draw_waits(waits: dict[str, dict[str, list[float]]], file: Path) -> None:
    """How many of the jobs of a kind waited at most so long, under each policy."""
    kinds = list(next(iter(waits.values())))
    figure, all_axes = plt.subplots(1, len(kinds), sharey=True, figsize=(11, 3.4))
    for kind, axes in zip(kinds, all_axes, strict=True):
        for policy, of_policy in waits.items():
            minutes = [max(seconds, 1.0) / 60 for seconds in of_policy[kind]]
            parts = [100 * (number + 1) / len(minutes) for number in range(len(minutes))]
            axes.plot(minutes, parts, label=policy, drawstyle="steps-post")
        axes.set_xscale("log")
        axes.set_title(kind, fontsize=10)
        axes.set_xlabel("minutes waited")
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("% of the jobs")
    all_axes[0].legend(fontsize=8)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    figures = json.load(sys.stdin)
    folder = Path(sys.argv[1])
    for name, load in figures["load"].items():
        draw_load(load, folder / f"{name}.svg")
    draw_waits(figures["waits"], folder / "waits-by-policy.svg")
