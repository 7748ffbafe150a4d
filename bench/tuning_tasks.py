"""What searches are compared on: standard functions, and trainings of real models on real data."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tuning_tables
from tuning_service.domain.space import Choice, Continuous, DataType, Dimension, Levels, Space, Value

Values = Mapping[str, Value]


@dataclass(frozen=True)
class Task:
    """A loss over a space: the less the better."""

    name: str
    space: Space
    loss: Callable[[Values], float]


def _cube(width: int, low: float, high: float) -> Space:
    return Space([Continuous(f"x{index}", low, high) for index in range(width)])


def _point(values: Values, width: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([float(values[f"x{index}"]) for index in range(width)])


def branin() -> Task:
    def loss(values: Values) -> float:
        first, second = float(values["x0"]), float(values["x1"])
        valley = second - 5.1 / (4 * math.pi**2) * first**2 + 5 / math.pi * first - 6
        return valley**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(first) + 10

    return Task("Branin, 2 numbers", Space([Continuous("x0", -5, 10), Continuous("x1", 0, 15)]), loss)


_HARTMANN_6 = (
    np.array(
        [
            [10, 3, 17, 3.5, 1.7, 8],
            [0.05, 10, 17, 0.1, 8, 14],
            [3, 3.5, 1.7, 10, 17, 8],
            [17, 8, 0.05, 10, 0.1, 14],
        ]
    ),
    1e-4
    * np.array(
        [
            [1312, 1696, 5569, 124, 8283, 5886],
            [2329, 4135, 8307, 3736, 1004, 9991],
            [2348, 1451, 3522, 2883, 3047, 6650],
            [4047, 8828, 8732, 5743, 1091, 381],
        ]
    ),
)
_HARTMANN_3 = (
    np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]]),
    1e-4 * np.array([[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]),
)


def _hartmann(constants: tuple[Any, Any]) -> Task:
    scales, centres = constants
    width = scales.shape[1]

    def loss(values: Values) -> float:
        inner = np.sum(scales * (_point(values, width) - centres) ** 2, axis=1)
        return -float(np.array([1.0, 1.2, 3.0, 3.2]) @ np.exp(-inner))

    return Task(f"Hartmann, {width} numbers", _cube(width, 0, 1), loss)


def rosenbrock() -> Task:
    """The numbers are powers of ten from 0.01 to 10; its values go over seven decades."""

    def loss(values: Values) -> float:
        x = _point(values, 4)
        return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))

    return Task("Rosenbrock, 4 powers", Space([Continuous(f"x{index}", -2, 1, 10.0) for index in range(4)]), loss)


def levy(width: int) -> Task:
    def loss(values: Values) -> float:
        w = 1 + (_point(values, width) - 1) / 4
        middle = (w[:-1] - 1) ** 2 * (1 + 10 * np.sin(math.pi * w[:-1] + 1) ** 2)
        last = (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)
        return float(math.sin(math.pi * w[0]) ** 2 + np.sum(middle) + last)

    return Task(f"Levy, {width} numbers", _cube(width, -10, 10), loss)


def ackley_mixed() -> Task:
    """Two numbers, two levels, two choices that shift and scale the rest."""
    shifts = {"a": 0.7, "b": -0.4, "c": 0.1, "d": 1.5}
    penalties = {"p": 0.0, "q": 1.0, "r": 0.5}
    space = Space(
        [
            Continuous("x0", -5, 8),
            Continuous("x1", -5, 8),
            Levels("n0", DataType.INT, list(range(-6, 11))),
            Levels("n1", DataType.INT, list(range(-4, 6))),
            Choice("shift", DataType.STR, list(shifts)),
            Choice("kind", DataType.STR, list(penalties)),
        ]
    )

    def loss(values: Values) -> float:
        shift = shifts[str(values["shift"])]
        x = np.array([float(values[name]) for name in ("x0", "x1", "n0", "n1")]) - np.array([shift, shift, 0, 0])
        x[:2] += 0.4
        spread = -20 * math.exp(-0.2 * math.sqrt(np.mean(x**2)))
        waves = math.exp(np.mean(np.cos(2 * math.pi * x)))
        return float(spread - waves + 20 + math.e + abs(shift + 0.4) + penalties[str(values["kind"])])

    return Task("Ackley, mixed", space, loss)


def styblinski_tang(width: int) -> Task:
    def loss(values: Values) -> float:
        x = _point(values, width)
        return float(np.sum(x**4 - 16 * x**2 + 5 * x)) / 2

    return Task(f"Styblinski-Tang, {width} numbers", _cube(width, -5, 5), loss)


def table(name: str, title: str, unordered: Sequence[str]) -> Task:
    """A search among the points of a table."""
    grid = tuning_tables.MAKERS[name][0]
    losses = tuning_tables.read(name)
    dimensions: list[Dimension] = [
        Choice(key, DataType.STR, list(values))
        if key in unordered
        else Levels(key, DataType.DOUBLE, [float(value) for value in values])
        for key, values in grid.items()
    ]
    space = Space(dimensions)

    def loss(values: Values) -> float:
        place = space.place(values)
        if place is None:
            raise LookupError(f"{dict(values)} is no point of the table {name}")
        return float(losses[tuple(int(coordinate) for coordinate in place)])

    return Task(title, space, loss)


def kernel_ridge() -> Task:
    """Squared error of kernel ridge regression on the diabetes data, 3-fold cross-validation."""
    from sklearn.datasets import load_diabetes

    features, target = load_diabetes(return_X_y=True)
    features = features / features.std(axis=0)
    return Task("kernel ridge, diabetes", *kernel_ridge_on(features, target))


def kernel_ridge_of_friedman() -> Task:
    from sklearn.datasets import make_friedman1

    return Task("kernel ridge, Friedman", *kernel_ridge_on(*make_friedman1(150, noise=1.0, random_state=3)))


def kernel_ridge_on(features: Any, target: Any) -> tuple[Space, Callable[..., float]]:
    """A space, and the squared error at its places; also after learning from the first part of each fold only."""
    products = features @ features.T
    squares = np.diag(products)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
    folds = np.random.default_rng(0).integers(3, size=len(target))
    space = Space(
        [
            Continuous("alpha", -6, 3, 10.0),
            Continuous("gamma", -5, 1, 10.0),
            Continuous("coef0", 0, 3),
            Levels("degree", DataType.INT, [1, 2, 3, 4]),
            Choice("kernel", DataType.STR, ["gauss", "laplace", "polynomial", "sigmoid"]),
        ]
    )

    def loss(values: Values, part: float = 1.0) -> float:
        gamma, constant = float(values["gamma"]), float(values["coef0"])
        kernel: Any = {
            "gauss": lambda: np.exp(-gamma * distances),
            "laplace": lambda: np.exp(-gamma * np.sqrt(distances)),
            "polynomial": lambda: (gamma * products + constant) ** int(values["degree"]),
            "sigmoid": lambda: np.tanh(gamma * products + constant),
        }[str(values["kernel"])]()
        found = 0.0
        for fold in range(3):
            train, test = np.flatnonzero(folds != fold), folds == fold
            train = train[: math.ceil(part * len(train))]
            mean = target[train].mean()
            ridge = kernel[np.ix_(train, train)] + float(values["alpha"]) * np.eye(len(train))
            try:
                weights = np.linalg.solve(ridge, target[train] - mean)
            except np.linalg.LinAlgError:
                return 1e9
            found += float(np.mean((kernel[np.ix_(test, train)] @ weights + mean - target[test]) ** 2)) / 3
        return min(found, 1e9) if math.isfinite(found) else 1e9

    return space, loss


def support_vectors() -> Task:
    """Error rate of support vectors on breast cancer (569 patients), 2-fold cross-validation."""
    from sklearn.datasets import load_breast_cancer

    return Task("support vectors, breast cancer", *_vectors(*load_breast_cancer(return_X_y=True)))


def support_vectors_of_wine() -> Task:
    from sklearn.datasets import load_wine

    return Task("support vectors, wine", *_vectors(*load_wine(return_X_y=True)))


def _vectors(features: Any, target: Any) -> tuple[Space, Callable[[Values], float]]:
    from sklearn.svm import SVC

    features = (features - features.mean(axis=0)) / features.std(axis=0)
    folds = np.random.default_rng(0).permutation(len(target)) % 2
    space = Space(
        [
            Continuous("C", -3, 4, 10.0),
            Continuous("gamma", -6, 1, 10.0),
            Continuous("coef0", 0, 2),
            Levels("degree", DataType.INT, [2, 3, 4, 5]),
            Choice("kernel", DataType.STR, ["rbf", "poly", "sigmoid", "linear"]),
        ]
    )

    def loss(values: Values) -> float:
        wrong = 0
        for fold in range(2):
            model = SVC(**values, max_iter=3000)
            model.fit(features[folds != fold], target[folds != fold])
            wrong += int(np.sum(model.predict(features[folds == fold]) != target[folds == fold]))
        return wrong / len(target)

    return space, loss


MEASURED: dict[str, Callable[[], Task]] = {
    "branin": branin,
    "hartmann6": functools.partial(_hartmann, _HARTMANN_6),
    "rosenbrock": rosenbrock,
    "levy": functools.partial(levy, 10),
    "boosting": lambda: table("boosting", "boosted trees, diabetes (table)", []),
    "network": lambda: table("network", "PyTorch network, digits (table)", ["activation"]),
    "forest": lambda: table("forest", "random trees, wine (table)", ["criterion", "bootstrap"]),
    "ridge": kernel_ridge,
    "vectors": support_vectors,
}
# What the algorithms were worked on with: none of the measured ones.
DEVELOPMENT: dict[str, Callable[[], Task]] = {
    "hartmann3": functools.partial(_hartmann, _HARTMANN_3),
    "styblinski": functools.partial(styblinski_tang, 5),
    "levy4": functools.partial(levy, 4),
    "ackley": ackley_mixed,
    "boosting_of_friedman": lambda: table("boosting_of_friedman", "boosted trees, Friedman (table)", ["loss"]),
    "ridge_of_friedman": kernel_ridge_of_friedman,
    "vectors_of_wine": support_vectors_of_wine,
}
TASKS = {**MEASURED, **DEVELOPMENT}
