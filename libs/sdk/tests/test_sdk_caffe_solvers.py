"""Caffe's solvers and policies, against the formulas of its documentation in plain numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from dlmesh_sdk import caffe_solvers

Array = np.ndarray
STEPS = 6
GRADIENTS = np.random.default_rng(11).normal(size=(STEPS, 3))
START = np.array([0.5, -0.25, 1.5])
RATE, MOMENTUM, DECAY, DELTA = 0.1, 0.6, 0.05, 1e-4


def sgd(g: Array, s: dict[str, Any], rate: float) -> Array:
    s["v"] = MOMENTUM * s.get("v", 0) + rate * g
    return s["v"]


def nesterov(g: Array, s: dict[str, Any], rate: float) -> Array:
    old = s.get("v", 0 * g)
    s["v"] = MOMENTUM * old + rate * g
    return (1 + MOMENTUM) * s["v"] - MOMENTUM * old


def adagrad(g: Array, s: dict[str, Any], rate: float) -> Array:
    s["h"] = s.get("h", 0) + g**2
    return rate * g / (np.sqrt(s["h"]) + DELTA)


def rmsprop(g: Array, s: dict[str, Any], rate: float) -> Array:
    s["h"] = 0.9 * s.get("h", 0) + 0.1 * g**2
    return rate * g / (np.sqrt(s["h"]) + DELTA)


def adadelta(g: Array, s: dict[str, Any], rate: float) -> Array:
    s["h"] = MOMENTUM * s.get("h", 0) + (1 - MOMENTUM) * g**2
    update = g * np.sqrt((s.get("u", 0) + DELTA) / (s["h"] + DELTA))
    s["u"] = MOMENTUM * s.get("u", 0) + (1 - MOMENTUM) * update**2
    return rate * update


def adam(g: Array, s: dict[str, Any], rate: float) -> Array:
    s["t"] = s.get("t", 0) + 1
    s["m"] = MOMENTUM * s.get("m", 0) + (1 - MOMENTUM) * g
    s["v"] = 0.99 * s.get("v", 0) + 0.01 * g**2
    correction = math.sqrt(1 - 0.99 ** s["t"]) / (1 - MOMENTUM ** s["t"])
    return rate * correction * s["m"] / (np.sqrt(s["v"]) + DELTA)


FORMULAS: dict[str, Callable[[Array, dict[str, Any], float], Array]] = {
    "SGD": sgd,
    "Nesterov": nesterov,
    "AdaGrad": adagrad,
    "RMSProp": rmsprop,
    "AdaDelta": adadelta,
    "Adam": adam,
}


def solve(settings: dict[str, Any], gradients: Array, **group: float) -> Array:
    weights = torch.nn.Parameter(torch.tensor(START))
    optimizer = caffe_solvers.build_optimizer([{"params": [weights], **group}], {"base_lr": RATE, **settings})
    for iteration, gradient in enumerate(gradients):
        # The rate changes: what is in the history keeps the rate it came with.
        optimizer.param_groups[0]["lr"] = RATE / (1 + iteration)
        weights.grad = torch.tensor(gradient)
        optimizer.step()
    return weights.detach().numpy()


@pytest.mark.parametrize("solver", FORMULAS)
@pytest.mark.parametrize("regularization", ["L2", "L1"])
def test_a_solver_steps_by_its_formula(solver: str, regularization: str) -> None:
    settings = {
        "type": solver,
        "momentum": MOMENTUM,
        "momentum2": 0.99,
        "rms_decay": 0.9,
        "delta": DELTA,
        "weight_decay": DECAY,
        "regularization_type": regularization,
        "iter_size": 2,
    }
    expected, state = START.copy(), {}
    for iteration, gradient in enumerate(GRADIENTS):
        shrink = np.sign(expected) if regularization == "L1" else expected
        # lr_mult 2, decay_mult 3, two batches in each gradient.
        gradient = gradient / 2 + DECAY * 3 * shrink
        expected = expected - FORMULAS[solver](gradient, state, 2 * RATE / (1 + iteration))
    np.testing.assert_allclose(solve(settings, GRADIENTS, lr_mult=2.0, decay_mult=3.0), expected, rtol=1e-9)


def test_gradients_are_clipped_by_the_norm_of_all() -> None:
    first, second = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    optimizer = caffe_solvers.build_optimizer(
        [{"params": [first]}, {"params": [second], "lr_mult": 10.0}], {"base_lr": 1.0, "clip_gradients": 1.3}
    )
    first.grad, second.grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    optimizer.step()
    np.testing.assert_allclose(first.detach(), [-0.3, -0.4], rtol=1e-6)
    np.testing.assert_allclose(second.detach(), [-12.0], rtol=1e-6)
    first.grad, second.grad = torch.tensor([0.1, 0.0]), torch.tensor([0.0])
    optimizer.step()
    np.testing.assert_allclose(first.detach(), [-0.4, -0.4], rtol=1e-6)


CURVES: list[tuple[dict[str, Any], Callable[[int], float]]] = [
    ({}, lambda i: 0.2),
    ({"lr_policy": "fixed", "gamma": 0.5}, lambda i: 0.2),
    ({"lr_policy": "step", "gamma": 0.5, "stepsize": 7}, lambda i: 0.2 * 0.5 ** math.floor(i / 7)),
    ({"lr_policy": "exp", "gamma": 0.98}, lambda i: 0.2 * 0.98**i),
    ({"lr_policy": "inv", "gamma": 0.01, "power": 0.75}, lambda i: 0.2 * (1 + 0.01 * i) ** -0.75),
    (
        {"lr_policy": "multistep", "gamma": 0.1, "stepvalue": [5, 20]},
        lambda i: 0.2 * (1 if i < 5 else 0.1 if i < 20 else 0.01),
    ),
    ({"lr_policy": "poly", "power": 2.0, "max_iter": 50}, lambda i: 0.2 * (1 - i / 50) ** 2),
    ({"lr_policy": "poly", "power": 0.0, "max_iter": 50}, lambda i: 0.2),
    ({"lr_policy": "sigmoid", "gamma": -0.3, "stepsize": 20}, lambda i: 0.2 / (1 + math.exp(0.3 * (i - 20)))),
]


@pytest.mark.parametrize(("settings", "formula"), CURVES, ids=[str(settings) for settings, _ in CURVES])
def test_a_policy_follows_its_formula(settings: dict[str, Any], formula: Callable[[int], float]) -> None:
    for iteration in (0, 1, 4, 5, 6, 7, 13, 14, 19, 20, 21, 40, 50):
        rate = caffe_solvers.learning_rate({"base_lr": 0.2, **settings}, iteration)
        assert rate == pytest.approx(formula(iteration), rel=1e-9), iteration


def test_a_sigmoid_ends_far_from_its_step() -> None:
    settings = {"base_lr": 1.0, "lr_policy": "sigmoid", "gamma": -1.0, "stepsize": 10}
    assert caffe_solvers.learning_rate(settings, 10**6) == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_policy": "cosine"}, "lr_policy: 'cosine' is not known; allowed: fixed, step, multistep, exp"),
        ({"lr_policy": "step", "gamma": 0.1}, "lr_policy 'step' needs stepsize"),
        ({"lr_policy": "multistep", "gamma": 0.1, "stepvalue": []}, "lr_policy 'multistep' needs stepvalue"),
        ({"lr_policy": "poly", "power": 1.0}, "lr_policy 'poly' needs max_iter"),
        ({"lr_policy": "inv", "gamma": 0.1, "power": None}, "lr_policy 'inv' needs power"),
    ],
)
def test_a_policy_names_what_it_lacks(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        caffe_solvers.learning_rate({"base_lr": 0.1, **settings}, 3)


def test_an_unknown_solver_names_the_known() -> None:
    with pytest.raises(ValueError, match="solver type: 'Rprop' is not known; allowed: SGD, Nesterov"):
        caffe_solvers.build_optimizer([], {"type": "Rprop"})
