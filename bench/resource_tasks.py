"""Real trainings of which a part tells something: what Hyperband and ASHA are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import tuning_tables
from tuning_service.domain.space import Choice, DataType, Dimension, Levels, Space, Value
from tuning_tasks import kernel_ridge_on

Values = Mapping[str, Value]


@dataclass(frozen=True)
class ResourceTask:
    """A loss over a space after 1 to `most` of a resource: epochs, say."""

    name: str
    space: Space
    most: int
    loss: Callable[[Values, int], float]


def trees() -> ResourceTask:
    """The table of boosted trees, without their number: ten trees are one of the resource."""
    grid = tuning_tables.BOOSTING
    return _table(
        "boosting", "boosted trees, diabetes: trees", "trees", {trees // 10: trees for trees in grid["trees"]}
    )


def epochs() -> ResourceTask:
    """A PyTorch network on digits."""
    return _table("epochs", "PyTorch network, digits: epochs", "epochs", {one: one for one in (1, 3, 9, 27)})


def patients() -> ResourceTask:
    """Kernel ridge regression, trained for each trial: how many ninths of the patients it learns from."""
    from sklearn.datasets import load_diabetes

    features, target = load_diabetes(return_X_y=True)
    space, loss = kernel_ridge_on(features / features.std(axis=0), target)
    most = 9
    name = "kernel ridge, diabetes: patients"
    return ResourceTask(name, space, most, lambda values, resource: loss(values, resource / most))


def _table(name: str, title: str, axis: str, amounts: Mapping[int, int]) -> ResourceTask:
    grid = dict(tuning_tables.MAKERS[name][0])
    position, known = list(grid).index(axis), list(grid.pop(axis))
    losses = tuning_tables.read(name)
    dimensions: list[Dimension] = [
        Choice(key, DataType.STR, list(values))
        if isinstance(values[0], str)
        else Levels(key, DataType.DOUBLE, [float(value) for value in values])
        for key, values in grid.items()
    ]
    space = Space(dimensions)

    def loss(values: Values, resource: int) -> float:
        place = space.place(values)
        if place is None:
            raise LookupError(f"{dict(values)} is no point of the table {name}")
        found = [int(coordinate) for coordinate in place]
        return float(losses[(*found[:position], known.index(amounts[resource]), *found[position:])])

    return ResourceTask(title, space, max(amounts), loss)


TASKS: Mapping[str, Callable[[], ResourceTask]] = {
    "trees": trees,
    "epochs": epochs,
    "patients": patients,
}
