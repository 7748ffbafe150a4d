"""`python draw_curves.py FILE < panels.json`: best loss so far. Needs matplotlib, nothing of ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "dlmesh"
import matplotlib.pyplot as plt  # noqa: E402

COLUMNS = 3
# More bands than these would hide each other.
MOST_BANDS = 6


def draw(panels: Sequence[dict[str, Any]], file: Path) -> None:
    """Of each sampler the median over seeds, and for ours what lies between the quartiles. A row's label stands below
    it where the next row has another one."""
    rows = -(-len(panels) // COLUMNS)
    figure, all_axes = plt.subplots(rows, COLUMNS, sharex=True, squeeze=False, figsize=(11, 2.7 * rows))
    for panel, axes in zip(panels, all_axes.flat, strict=False):
        for number, (sampler, (low, middle, high)) in enumerate(panel["curves"].items()):
            at = range(1, len(middle) + 1)
            is_ours = " " not in sampler
            axes.plot(
                at,
                middle,
                color=f"C{number}",
                linewidth=1.4 if is_ours else 0.9,
                linestyle="-" if is_ours else "--",
            )
            if is_ours and len(panel["curves"]) <= MOST_BANDS:
                axes.fill_between(at, low, high, color=f"C{number}", alpha=0.12, linewidth=0)
        axes.set_yscale("log")
        axes.set_ylim(1e-3, 30)
        axes.set_title(panel["title"], fontsize=9)
        axes.grid(alpha=0.3)
    labels = [panels[row * COLUMNS]["label"] for row in range(rows)]
    for row, label in enumerate(labels):
        if label not in labels[row + 1 :]:
            for axes in all_axes[row]:
                axes.set_xlabel(label)
    for axes in all_axes[:, 0]:
        axes.set_ylabel("left to gain")
    samplers = list(panels[0]["curves"])
    figure.legend(figure.axes[0].get_lines(), samplers, loc="lower center", ncols=max(6, len(samplers)), fontsize=8)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(json.load(sys.stdin), Path(sys.argv[1]))
