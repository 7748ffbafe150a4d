"""Traces of jobs, drawn at random in the shape that is known of clusters for deep learning."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from scheduling_service.domain.job import Spec
from scheduling_service.simulation.cluster import Arrival


@dataclass(frozen=True)
class Mix:
    """What a trace is made of.

    Jobs come at random (Poisson) and keep `load` times the slots busy on average; most are small and short, a few large
    and long (log-normal). Of `users` the first submit most. Parts are from 0 to 1.
    """

    jobs: int
    slots: int
    load: float = 0.9
    users: int = 10
    mean_seconds: float = 600.0
    sizes: Sequence[int] = (1, 1, 1, 1, 2, 2, 4, 8, 16, 32)
    elastic_part: float = 0.3
    limited_part: float = 0.7
    urgent_part: float = 0.1
    failing_part: float = 0.02
    gpus_per_rank: int = 0
    shared_gpu_part: float = 0.0


def draw(mix: Mix, seed: int) -> list[Arrival]:
    """A trace; the same for the same seed."""
    dice = random.Random(seed)
    sizes = [size for size in mix.sizes if size <= mix.slots]
    mean_rank_seconds = mix.mean_seconds * sum(sizes) / len(sizes)
    gap = mean_rank_seconds / (mix.load * mix.slots)
    weights = [1 / (rank + 1) for rank in range(mix.users)]
    at = 0.0
    arrivals = []
    for number in range(mix.jobs):
        at += dice.expovariate(1 / gap)
        ranks = dice.choice(sizes)
        # The mean of this log-normal is the wanted one.
        seconds = mix.mean_seconds * dice.lognormvariate(-0.72, 1.2)
        fewest = max(1, ranks // 4) if ranks > 1 and dice.random() < mix.elastic_part else 0
        limit = seconds * dice.uniform(1.1, 4) + 60 if not fewest and dice.random() < mix.limited_part else 0.0
        failures = dice.randint(1, 2) if dice.random() < mix.failing_part else 0
        shared = mix.gpus_per_rank > 0 and dice.random() < mix.shared_gpu_part
        spec = Spec(
            name=f"job {number}",
            kind="training",
            owner=f"user{dice.choices(range(mix.users), weights)[0]}",
            ranks=ranks,
            command=("train",),
            min_ranks=fewest,
            max_seconds=limit,
            max_restarts=2,
            priority=dice.choice((5, 20)) if dice.random() < mix.urgent_part else 0,
            gpus_per_rank=mix.gpus_per_rank,
            gpu_percentage=dice.choice((25, 50)) if shared else 0,
        )
        arrivals.append(Arrival(at, f"{number:06}", spec, seconds * ranks, failures))
    return arrivals
