"""Which trials of a study with several objectives are worth choosing from."""

from __future__ import annotations

from collections.abc import Sequence


def front(losses: Sequence[tuple[int, Sequence[float]]]) -> list[int]:
    """The numbers of those that no other one beats, that is, is at least as good as in everything and better than in
    something; by their first losses. Of equal ones all are kept."""
    kept: list[tuple[int, Sequence[float]]] = []
    # What could beat one comes before it.
    for number, values in sorted(losses, key=lambda one: (list(one[1]), one[0])):
        # With two losses the last one kept has the lowest second one so far.
        rivals = kept[-1:] if len(values) == 2 else kept
        if not any(_beats(other, values) for _, other in rivals):
            kept.append((number, values))
    return [number for number, _ in kept]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(mine <= its for mine, its in zip(one, other, strict=True)) and list(one) != list(other)
