"""How many kernels a model should have, and how models share what the machine may have of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from inference_service.kernels.domain.pools import NO_LIMIT


@dataclass(frozen=True)
class Demand:
    """What a pool of `owner` asks for: `wanted` kernels, of which it has to have `minimum`; tasks wait since
    `oldest_seconds`."""

    wanted: int
    minimum: int = 0
    pending: int = 0
    oldest_seconds: float = 0.0
    owner: str = ""


def wanted(
    *,
    kernels: int,
    busy: int,
    pending: int,
    batch_size: int,
    minimum: int,
    maximum: int,
    idle_seconds: Sequence[float] = (),
    release_seconds: float = 0.0,
) -> int:
    """Between `minimum` and `maximum` (-1: any number): those that are `busy` and one for each batch that is `pending`.

    Of the `kernels` that there are those stay that had no task for less than `release_seconds`; `idle_seconds` says for
    how long each idle one had none.
    """
    needed = busy + math.ceil(pending / batch_size)
    released = sum(seconds >= release_seconds for seconds in idle_seconds)
    number = max(minimum, needed, kernels - released)
    return number if maximum == NO_LIMIT else min(number, max(minimum, maximum))


def share(demands: Sequence[Demand], places: int) -> list[int]:
    """How many kernels each pool gets of `places`, never more than it wants.

    First one each, beginning with those whose tasks wait the longest; then the least that each has to have; then one
    after the other to whom has the fewest. Each time owners take turns, so that nobody gets more by having more models.
    """
    shares = [0] * len(demands)
    of_owners = Counter[str]()
    left = places
    # Of two alike the earlier goes first: who has a kernel keeps it.
    by_need = sorted(range(len(demands)), key=lambda one: (not demands[one].pending, -demands[one].oldest_seconds))
    rounds = (
        [min(1, demand.wanted) for demand in demands],
        [min(max(1, demand.minimum), demand.wanted) for demand in demands],
        [demand.wanted for demand in demands],
    )
    for goals in rounds:
        while left > 0:
            short = [one for one in by_need if shares[one] < goals[one]]
            if not short:
                break
            next_one = min(short, key=lambda one: (of_owners[demands[one].owner], shares[one]))
            shares[next_one] += 1
            of_owners[demands[next_one].owner] += 1
            left -= 1
    return shares
