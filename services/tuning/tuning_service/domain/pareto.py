"""Which trials of a study with several objectives are worth choosing from."""

from __future__ import annotations

from collections.abc import Sequence


def front(losses: Sequence[tuple[int, Sequence[float]]]) -> list[int]:
    """The numbers of those with one or two losses each that no other one beats, that is, is at least as good as in
    everything and better than in something; by their losses. Of equal ones all are kept."""
    kept: list[tuple[int, Sequence[float]]] = []
    # What could beat one comes before it, and the last one kept has the lowest second loss so far.
    for number, values in sorted(losses, key=lambda one: (list(one[1]), one[0])):
        if not kept or kept[-1][1][-1] > values[-1] or list(kept[-1][1]) == list(values):
            kept.append((number, values))
    return [number for number, _ in kept]
