"""Which trials are better, of those with several losses, too."""

from __future__ import annotations

import numpy as np

from tuning_service.algorithms.history import Flags, Floats, Integers


def best_first(losses: Floats, best: int, newest: int) -> Integers:
    """Indices of at most so many of the best and of the newest rows, from the best to the worst.

    With several losses they come front after front of what nothing else beats in everything, and in a front those with
    most room around them first, so that its ends and its gaps do.
    """
    if losses.shape[1] == 1:
        order = np.argsort(losses[:, 0], kind="stable")
        if len(order) <= best + newest:
            return order
        is_kept = order >= len(order) - newest
        is_kept[:best] = True
        return order[is_kept]
    chosen = np.arange(len(losses))
    if len(losses) > best + newest:
        # Fronts of everything would take too long: the best by the sum of their places in each loss.
        places = np.argsort(np.argsort(losses, axis=0, kind="stable"), axis=0, kind="stable")
        first = np.argsort(np.sum(places, axis=1), kind="stable")[:best]
        chosen = np.union1d(first, chosen[-newest:])
    order_of_chosen: list[int] = []
    left = chosen
    while len(left):
        on_front = is_front(losses[left])
        front = left[on_front]
        order_of_chosen.extend(front[np.argsort(-room(losses[front]), kind="stable")].tolist())
        left = left[~on_front]
    return np.array(order_of_chosen, dtype=np.intp)


def is_front(losses: Floats) -> Flags:
    """True where nothing else is as good in everything and better in something."""
    found = np.ones(len(losses), dtype=bool)
    for index in range(len(losses)):
        if found[index]:
            found &= ~(np.all(losses[index] <= losses, axis=1) & np.any(losses[index] < losses, axis=1))
    return found


def room(losses: Floats) -> Floats:
    """How far apart the neighbours of each one are, over all losses; infinite at the ends. The crowding distance of Deb
    et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II" (2002)."""
    found = np.zeros(len(losses))
    for column in losses.T:
        order = np.argsort(column, kind="stable")
        span = float(column[order[-1]] - column[order[0]]) or 1.0
        found[order[[0, -1]]] = np.inf
        found[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return found
