"""`python draw_curves.py FILE < curves.json`: best loss so far over trials. Needs matplotlib, nothing of ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "dlmesh"
import matplotlib.pyplot as plt  # noqa: E402

COLUMNS = 3


def draw(tasks: dict[str, dict[str, Any]], file: Path) -> None:
    """One plot a task; of each sampler the median over seeds, and for ours what lies between the quartiles."""
    rows = -(-len(tasks) // COLUMNS)
    figure, all_axes = plt.subplots(rows, COLUMNS, sharex=True, squeeze=False, figsize=(11, 2.7 * rows))
    for (title, samplers), axes in zip(tasks.items(), all_axes.flat, strict=False):
        for number, (sampler, (low, middle, high)) in enumerate(samplers.items()):
            trials = range(1, len(middle) + 1)
            is_ours = " " not in sampler
            axes.plot(
                trials,
                middle,
                color=f"C{number}",
                linewidth=1.4 if is_ours else 0.9,
                linestyle="-" if is_ours else "--",
            )
            if is_ours:
                axes.fill_between(trials, low, high, color=f"C{number}", alpha=0.12, linewidth=0)
        axes.set_yscale("log")
        axes.set_ylim(1e-3, 30)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
    for axes in all_axes[-1]:
        axes.set_xlabel("trials")
    for axes in all_axes[:, 0]:
        axes.set_ylabel("left to gain")
    figure.legend(figure.axes[0].get_lines(), list(next(iter(tasks.values()))), loc="lower center", ncols=6, fontsize=8)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(json.load(sys.stdin), Path(sys.argv[1]))
