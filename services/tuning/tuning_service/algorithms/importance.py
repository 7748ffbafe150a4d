"""How much of the difference between trials each parameter makes.

A random forest learns the losses; what its prediction varies by, when one parameter changes and the others are
averaged over, is what that parameter explains by itself (the main effects of functional ANOVA: Hutter, Hoos and
Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance", ICML 2014).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from tuning_service.algorithms.base import Evaluation, Problem, TrialState
from tuning_service.algorithms.history import Codec, Floats

LEAST_TRIALS = 8
# The newest of more: a forest of all would take long, and say the same.
MOST_TRIALS = 2_000
TREES, LEAF = 64, 3
# In so many values of a parameter, over so many trials.
VALUES, OTHERS = 24, 200


def importance(problem: Problem, trials: Sequence[Evaluation]) -> dict[str, float]:
    """For each parameter that is searched its part of what all of them explain, 0 to 1; they add up to 1, or are 0
    where nothing makes a difference. Empty when fewer than LEAST_TRIALS trials have losses."""
    finished = [trial for trial in trials if trial.state is TrialState.FINISHED and trial.losses][-MOST_TRIALS:]
    if len(finished) < LEAST_TRIALS or not problem.space.dimensions:
        return {}
    codec = Codec(problem.space)
    rows = np.array([codec.row(trial.place) for trial in finished])
    losses = np.array([trial.losses[0] for trial in finished if trial.losses])
    # By rank: one loss of a million would be all that is explained.
    ranks = np.argsort(np.argsort(losses, kind="stable"), kind="stable") / len(losses)
    numbers = np.random.default_rng(problem.seed_of(len(trials), "importance"))
    columns = _columns(codec)
    forest = RandomForestRegressor(
        n_estimators=TREES, min_samples_leaf=LEAF, random_state=int(numbers.integers(2**31 - 1)), n_jobs=1
    )
    forest.fit(_encoded(rows, codec, columns), ranks)
    others = rows[numbers.permutation(len(rows))[:OTHERS]]
    varied = [_variance(forest, codec, columns, others, dimension, numbers) for dimension in range(len(columns))]
    total = sum(varied)
    return {
        dimension.name: value / total if total > 1e-12 else 0.0
        for dimension, value in zip(problem.space.dimensions, varied, strict=True)
    }


def _variance(
    forest: RandomForestRegressor,
    codec: Codec,
    columns: Sequence[int],
    others: Floats,
    dimension: int,
    numbers: np.random.Generator,
) -> float:
    """Of the prediction, when this dimension changes and the others are averaged over."""
    size = int(codec.sizes[dimension])
    if codec.is_choice[dimension]:
        values = np.arange(size, dtype=np.float64)
        if size > VALUES:
            values = numbers.permutation(values)[:VALUES]
    else:
        values = (np.arange(VALUES) + 0.5) / VALUES
    rows = np.repeat(others, len(values), axis=0)
    rows[:, dimension] = np.tile(values, len(others))
    predicted = forest.predict(_encoded(codec.snapped(rows), codec, columns))
    return float(np.var(predicted.reshape(len(others), len(values)).mean(axis=0)))


def _columns(codec: Codec) -> list[int]:
    """How many columns a dimension has for a forest: one, or one for each value of a choice."""
    return [int(size) if choice else 1 for size, choice in zip(codec.sizes, codec.is_choice, strict=True)]


def _encoded(rows: Floats, codec: Codec, columns: Sequence[int]) -> Floats:
    parts = [
        (rows[:, [index]] == np.arange(width)).astype(np.float64) if codec.is_choice[index] else rows[:, [index]]
        for index, width in enumerate(columns)
    ]
    return np.concatenate(parts, axis=1)
