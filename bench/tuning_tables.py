"""`python bench/tuning_tables.py [NAME]`: losses of real trainings at every point of a grid, kept in bench/tables.

A search among them costs milliseconds, and every sampler sees the same figures. Takes minutes on one core.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TABLES = Path(__file__).resolve().parent / "tables"
Grid = dict[str, Sequence[Any]]

BOOSTING: Grid = {
    "trees": range(10, 201, 10),
    "learning_rate_log10": [-2.0 + 0.25 * step for step in range(9)],
    "max_depth": range(1, 6),
    "subsample": [0.4, 0.6, 0.8, 1.0],
    "min_samples_leaf": [1, 4, 16],
}
NETWORK: Grid = {
    "learning_rate_log10": [-3.5 + 0.25 * step for step in range(13)],
    "momentum": [0.0, 0.5, 0.9, 0.95],
    "width": [8, 16, 32, 64],
    "activation": ["relu", "tanh", "sigmoid"],
    "weight_decay_log10": [-5, -4, -3, -2, -1],
    "epochs": [1, 2, 3, 5, 8],
}
# What a search spends on a trial is the last one: each is three times the one before.
EPOCHS: Grid = {**NETWORK, "epochs": [1, 3, 9, 27]}
FOREST: Grid = {
    "max_depth": range(1, 13),
    "max_features": [0.1 * step for step in range(1, 11)],
    "min_samples_leaf": range(1, 9),
    "criterion": ["gini", "entropy"],
    "bootstrap": ["yes", "no"],
}
# For work on the algorithms: none of the measured ones.
BOOSTING_OF_FRIEDMAN: Grid = {
    "trees": range(10, 201, 10),
    "learning_rate_log10": [-2.0 + 0.25 * step for step in range(9)],
    "max_depth": range(1, 5),
    "max_features": [0.2, 0.4, 0.6, 0.8, 1.0],
    "loss": ["squared_error", "absolute_error", "huber"],
}


def boosting() -> Iterator[float]:
    """Squared error of boosted trees on the diabetes data (442 patients), 3-fold cross-validation."""
    from sklearn.datasets import load_diabetes
    from sklearn.ensemble import GradientBoostingRegressor

    features, target = load_diabetes(return_X_y=True)

    def model(rate: float, depth: int, subsample: float, leaf: int) -> Any:
        return GradientBoostingRegressor(
            n_estimators=max(BOOSTING["trees"]),
            learning_rate=10.0**rate,
            max_depth=depth,
            subsample=subsample,
            min_samples_leaf=leaf,
            random_state=0,
        )

    yield from _by_trees(features, target, model, BOOSTING)


def boosting_of_friedman() -> Iterator[float]:
    """The same on 240 points of Friedman's first function with noise."""
    from sklearn.datasets import make_friedman1
    from sklearn.ensemble import GradientBoostingRegressor

    features, target = make_friedman1(240, noise=2.0, random_state=4)

    def model(rate: float, depth: int, max_features: float, loss: str) -> Any:
        return GradientBoostingRegressor(
            n_estimators=max(BOOSTING_OF_FRIEDMAN["trees"]),
            learning_rate=10.0**rate,
            max_depth=depth,
            max_features=max_features,
            loss=loss,
            random_state=0,
        )

    yield from _by_trees(features, target, model, BOOSTING_OF_FRIEDMAN)


def _by_trees(features: Any, target: Any, model: Callable[..., Any], grid: Grid) -> Iterator[float]:
    """One fit gives the losses of every number of trees."""
    from sklearn.model_selection import KFold

    wanted = list(grid["trees"])
    rest = list(itertools.product(*list(grid.values())[1:]))
    losses = np.zeros((len(wanted), len(rest)))
    for column, settings in enumerate(rest):
        for train, test in KFold(3, shuffle=True, random_state=0).split(features):
            fitted = model(*settings).fit(features[train], target[train])
            for trees, predicted in enumerate(fitted.staged_predict(features[test]), 1):
                if trees in wanted:
                    losses[wanted.index(trees), column] += np.mean((predicted - target[test]) ** 2) / 3
    yield from losses.ravel().tolist()


def network(grid: Grid = NETWORK) -> Iterator[float]:
    """Cross-entropy of a PyTorch network with one hidden layer on digits: 600 to learn from, 600 to judge."""
    import torch
    from sklearn.datasets import load_digits

    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[:1200]
    inputs = torch.tensor(images[order] / 16.0, dtype=torch.float32)
    targets = torch.tensor(labels[order])
    seeds = [torch.Generator().manual_seed(epoch) for epoch in range(max(grid["epochs"]))]
    batches = [torch.randperm(600, generator=seed).split(50) for seed in seeds]
    activations = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
    for rate, momentum, width, name, decay in itertools.product(*list(grid.values())[:-1]):
        torch.manual_seed(0)
        hidden, last = torch.nn.Linear(64, width), torch.nn.Linear(width, 10)
        activation = activations[name]
        weights = [*hidden.parameters(), *last.parameters()]
        optimizer = torch.optim.SGD(weights, lr=10.0**rate, momentum=momentum, weight_decay=10.0**decay)
        for epoch, parts in enumerate(batches, 1):
            for part in parts:
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(last(activation(hidden(inputs[part]))), targets[part])
                loss.backward()
                optimizer.step()
            if epoch in grid["epochs"]:
                with torch.no_grad():
                    answers = last(activation(hidden(inputs[600:])))
                    yield float(torch.nn.functional.cross_entropy(answers, targets[600:]))


def forest() -> Iterator[float]:
    """Log loss of 20 extremely randomised trees on wine (178 bottles), 3-fold cross-validation."""
    from sklearn.datasets import load_wine
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    features, target = load_wine(return_X_y=True)
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(features, target))
    for depth, max_features, leaf, criterion, bootstrap in itertools.product(*FOREST.values()):
        model = ExtraTreesClassifier(
            20,
            max_depth=depth,
            max_features=max_features,
            min_samples_leaf=leaf,
            criterion=criterion,
            bootstrap=bootstrap == "yes",
            random_state=0,
        )
        losses = []
        for train, test in folds:
            model.fit(features[train], target[train])
            losses.append(log_loss(target[test], model.predict_proba(features[test])))
        yield float(np.mean(losses))


MAKERS: dict[str, tuple[Grid, Callable[[], Iterator[float]]]] = {
    "boosting": (BOOSTING, boosting),
    "network": (NETWORK, network),
    "epochs": (EPOCHS, functools.partial(network, EPOCHS)),
    "forest": (FOREST, forest),
    "boosting_of_friedman": (BOOSTING_OF_FRIEDMAN, boosting_of_friedman),
}


def read(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Losses at every point of the grid of that name, one axis a parameter."""
    shape = [len(values) for values in MAKERS[name][0].values()]
    return np.load(TABLES / f"{name}.npy").astype(np.float64).reshape(shape)


if __name__ == "__main__":
    TABLES.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or list(MAKERS):
        # What diverged is as bad as what learned nothing.
        made = np.nan_to_num(np.fromiter(MAKERS[chosen][1](), dtype=np.float32), nan=1e6, posinf=1e6)
        np.save(TABLES / f"{chosen}.npy", made)
        print(chosen, made.size, made.min(), np.median(made), made.max(), flush=True)
