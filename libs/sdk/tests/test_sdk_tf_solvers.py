"""Solvers and learning rates for TensorFlow, against TensorFlow 1's own and Keras' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="TensorFlow is an optional extra")
keras = pytest.importorskip("keras")
from dlmesh_sdk import tf_solvers  # noqa: E402  only where TensorFlow is

v1 = tf.compat.v1.train
STEPS = (0, 1, 4, 5, 6, 9, 10, 11, 15, 23, 40)
RATE = {"learningrate": 0.2}
DECAY = {"decaysteps": 5, "decayrate": 0.5}

CURVES: list[tuple[dict[str, Any], Any]] = [
    ({}, lambda step: 0.2),
    ({"lrpolicy": "exponential", **DECAY}, lambda step: v1.exponential_decay(0.2, step, 5, 0.5)),
    (
        {"lrpolicy": "exponential", **DECAY, "staircase": "true"},
        lambda step: v1.exponential_decay(0.2, step, 5, 0.5, staircase=True),
    ),
    ({"lrpolicy": "inversetime", **DECAY}, lambda step: v1.inverse_time_decay(0.2, step, 5, 0.5)),
    (
        {"lrpolicy": "inversetime", **DECAY, "staircase": "true"},
        lambda step: v1.inverse_time_decay(0.2, step, 5, 0.5, staircase=True),
    ),
    ({"lrpolicy": "naturalexp", **DECAY}, lambda step: v1.natural_exp_decay(0.2, step, 5, 0.5)),
    (
        {"lrpolicy": "naturalexp", **DECAY, "staircase": "True"},
        lambda step: v1.natural_exp_decay(0.2, step, 5, 0.5, staircase=True),
    ),
    (
        {"lrpolicy": "piecewise", "stepvalues": "5,10", "decayrate": 0.1},
        lambda step: v1.piecewise_constant(step, [5, 10], [0.2, 0.02, 0.002]),
    ),
    ({"lrpolicy": "polynomial", "decaysteps": 10}, lambda step: v1.polynomial_decay(0.2, step, 10)),
    (
        {"lrpolicy": "polynomial", "decaysteps": 10, "end_learning_rate": 0},
        lambda step: v1.polynomial_decay(0.2, step, 10, 0.0),
    ),
    (
        {"lrpolicy": "polynomial", "decaysteps": 10, "power": 2.0, "end_learning_rate": 0.01, "cycle": True},
        lambda step: v1.polynomial_decay(0.2, step, 10, 0.01, 2.0, cycle=True),
    ),
]


@pytest.mark.parametrize(("given", "expected"), CURVES, ids=[str(given) for given, _ in CURVES])
def test_a_learning_rate_is_tensorflows(given: dict[str, Any], expected: Any) -> None:
    rate = tf_solvers.build_learning_rate(RATE | given)
    for step in STEPS:
        wanted = expected(tf.constant(step))
        wanted = wanted() if callable(wanted) else wanted
        found = rate(tf.constant(step)) if callable(rate) else rate
        assert float(found) == pytest.approx(float(wanted), rel=1e-5), step


GRADIENTS = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)
START = np.array([0.5, -0.25, 0.01, -1.0], np.float32)
L1_L2 = {"l1_regularization": 0.05, "l2_regularization": 0.2}


def by_keras(given: dict[str, Any]) -> np.ndarray:
    variable = keras.Variable(START)
    optimizer = tf_solvers.build_optimizer(given, tf_solvers.build_learning_rate(RATE))
    for gradient in GRADIENTS:
        optimizer.apply([tf.constant(gradient)], [variable])
    return np.asarray(variable)


def by_tensorflow_1(make: Any) -> np.ndarray:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        step = v1.get_or_create_global_step()
        variable = tf.compat.v1.get_variable("v", initializer=START)
        gradient = tf.compat.v1.placeholder(tf.float32, START.shape)
        update = make(step).apply_gradients([(gradient, variable)], global_step=step)
        session.run(tf.compat.v1.global_variables_initializer())
        for values in GRADIENTS:
            session.run(update, {gradient: values})
        return session.run(variable)


SOLVERS: list[tuple[dict[str, Any], Any]] = [
    ({}, lambda step: v1.GradientDescentOptimizer(0.2)),
    ({"solvertype": "GradientDescent", "momentum": 0.9}, lambda step: v1.GradientDescentOptimizer(0.2)),
    ({"solvertype": "Momentum"}, lambda step: v1.MomentumOptimizer(0.2, 0.9)),
    ({"solvertype": "Momentum", "momentum": 0.5}, lambda step: v1.MomentumOptimizer(0.2, 0.5)),
    ({"solvertype": "Adam", "epsilon": 1e-3}, lambda step: v1.AdamOptimizer(0.2, epsilon=1e-3)),
    (
        {"solvertype": "Adam", "beta1": 0.5, "beta2": 0.8, "epsilon": 1e-4},
        lambda step: v1.AdamOptimizer(0.2, 0.5, 0.8, 1e-4),
    ),
    (
        {"solvertype": "Adadelta", "optdecay": 0.7, "epsilon": 1e-3},
        lambda step: v1.AdadeltaOptimizer(0.2, rho=0.7, epsilon=1e-3),
    ),
    ({"solvertype": "Adagrad", "accumulator": 0.3}, lambda step: v1.AdagradOptimizer(0.2, 0.3)),
    ({"solvertype": "AdagradDA"}, lambda step: v1.AdagradDAOptimizer(0.2, step)),
    (
        {"solvertype": "AdagradDA", "accumulator": 0.5, **L1_L2},
        lambda step: v1.AdagradDAOptimizer(0.2, step, 0.5, 0.05, 0.2),
    ),
    ({"solvertype": "Ftrl", "lr_power": -0.7, "accumulator": 0.4}, lambda step: v1.FtrlOptimizer(0.2, -0.7, 0.4)),
    ({"solvertype": "Ftrl", **L1_L2}, lambda step: v1.FtrlOptimizer(0.2, -0.5, 0.1, 0.05, 0.2)),
    ({"solvertype": "ProximalGradientDescent"}, lambda step: v1.GradientDescentOptimizer(0.2)),
    (
        {"solvertype": "ProximalGradientDescent", **L1_L2},
        lambda step: v1.ProximalGradientDescentOptimizer(0.2, 0.05, 0.2),
    ),
    ({"solvertype": "ProximalAdagrad"}, lambda step: v1.ProximalAdagradOptimizer(0.2)),
    (
        {"solvertype": "ProximalAdagrad", "accumulator": 0.6, **L1_L2},
        lambda step: v1.ProximalAdagradOptimizer(0.2, 0.6, 0.05, 0.2),
    ),
]


@pytest.mark.parametrize(("given", "make"), SOLVERS, ids=[str(given) for given, _ in SOLVERS])
def test_an_optimizer_steps_as_tensorflows(given: dict[str, Any], make: Any) -> None:
    np.testing.assert_allclose(by_keras(given), by_tensorflow_1(make), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("centered", [False, True])
def test_rmsprop_steps_as_keras(centered: bool) -> None:
    """TensorFlow 1 begins its mean of squares with 1, Keras with 0; programs of today mean Keras'."""
    given = {"solvertype": "RMSProp", "optdecay": 0.8, "momentum": 0.4, "epsilon": 1e-3, "centered": centered}
    mean, squares, velocity, value = np.zeros(4), np.zeros(4), np.zeros(4), START.astype(np.float64)
    for gradient in GRADIENTS:
        squares = 0.8 * squares + 0.2 * gradient**2
        mean = 0.8 * mean + 0.2 * gradient
        variance = squares - mean**2 if centered else squares
        velocity = 0.4 * velocity + 0.2 * gradient / np.sqrt(variance + 1e-3)
        value = value - velocity
    np.testing.assert_allclose(by_keras(given), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lrpolicy": "step"}, "lrpolicy: 'step' is not built for TensorFlow; allowed: fixed, exponential"),
        ({"lrpolicy": "exponential", "decaysteps": 5}, "decayrate: is missing; lrpolicy exponential needs it"),
        ({"lrpolicy": "polynomial"}, "decaysteps: is missing"),
        ({"lrpolicy": "piecewise", "decayrate": 0.5}, "stepvalues: is missing"),
    ],
)
def test_a_policy_without_what_it_needs_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tf_solvers.build_learning_rate(RATE | given)


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(ValueError, match=r"solvertype: 'ASGD' is not built for TensorFlow; allowed: Adam, Momentum"):
        tf_solvers.build_optimizer({"solvertype": "ASGD"}, 0.1)


# Keras' own way of copying a variable.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("solver", ["AdagradDA", "ProximalGradientDescent", "ProximalAdagrad"])
def test_a_saved_model_goes_on_with_its_optimizer(tmp_path: Path, solver: str) -> None:
    given = {"solvertype": solver, **L1_L2}
    rate = tf_solvers.build_learning_rate(RATE | {"lrpolicy": "naturalexp", **DECAY})
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(tf_solvers.build_optimizer(given, rate), "mse")
    inputs, targets = np.ones((4, 3)), np.ones((4, 2))
    model.train_on_batch(inputs, targets)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert model.train_on_batch(inputs, targets) == pytest.approx(again.train_on_batch(inputs, targets))
    np.testing.assert_allclose(again.get_weights()[0], model.get_weights()[0])
