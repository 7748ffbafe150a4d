"""Keras optimizers and learning rates by the names that hyperparameters use.

What Keras has is Keras' own; AdagradDA and the proximal methods are written here after TensorFlow 1's optimizers.
All can be saved with a model; a program that loads such a model imports this module first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

Values = Mapping[str, Any]
# Keras has no types.
Schedule = Any
Optimizer = Any

DEFAULT_LEARNING_RATE = 0.01
DEFAULT_MOMENTUM = 0.9
POLICIES = ("fixed", "exponential", "inversetime", "naturalexp", "piecewise", "polynomial")
# What cannot be 0: there it means "not given".
_NEVER_ZERO = {"learningrate", "decaysteps", "decayrate", "accumulator"}


def build_learning_rate(hyperparameters: Values) -> float | Schedule:
    """The rate that `lrpolicy` describes: a number when it is fixed, else a schedule over optimizer steps.

    `decaysteps` and `decayrate` belong to exponential, inversetime and naturalexp (`staircase` makes whole steps of
    them), `decaysteps`, `power`, `end_learning_rate` and `cycle` to polynomial. A piecewise rate is multiplied by
    `decayrate` after each of `stepvalues`. ValueError names a policy that TensorFlow does not have, or what it lacks.
    """
    given = _given(hyperparameters)
    rate = float(given.get("learningrate", DEFAULT_LEARNING_RATE))
    policy = str(given.get("lrpolicy", "fixed")).casefold()
    if policy == "fixed":
        return rate
    schedules = keras.optimizers.schedules
    if policy == "piecewise":
        boundaries = [int(step) for step in str(_needed(given, "stepvalues", policy)).split(",") if step.strip()]
        factor = float(_needed(given, "decayrate", policy))
        return schedules.PiecewiseConstantDecay(boundaries, [rate * factor**i for i in range(len(boundaries) + 1)])
    if policy not in POLICIES:
        raise ValueError(f"lrpolicy: {policy!r} is not built for TensorFlow; allowed: {', '.join(POLICIES)}")
    steps = float(_needed(given, "decaysteps", policy))
    if policy == "polynomial":
        return schedules.PolynomialDecay(
            rate,
            steps,
            end_learning_rate=float(given.get("end_learning_rate", 0.0001)),
            power=float(given.get("power", 1.0)),
            cycle=bool(given.get("cycle", False)),
        )
    decay = {"exponential": schedules.ExponentialDecay, "inversetime": schedules.InverseTimeDecay}
    by_step = str(given.get("staircase", "false")).casefold() == "true"
    return decay.get(policy, NaturalExpDecay)(
        rate, steps, float(_needed(given, "decayrate", policy)), staircase=by_step
    )


def build_optimizer(hyperparameters: Values, learning_rate: float | Schedule) -> Optimizer:
    """The optimizer that `solvertype` names (GradientDescent when it is absent); ValueError lists the known ones."""
    given = _given(hyperparameters)
    name = str(given.get("solvertype", "GradientDescent"))
    build = {known.casefold(): build for known, build in _OPTIMIZERS.items()}.get(name.casefold())
    if build is None:
        raise ValueError(f"solvertype: {name!r} is not built for TensorFlow; allowed: {', '.join(_OPTIMIZERS)}")
    return build(learning_rate, given)


@keras.saving.register_keras_serializable(package="dlmesh")
class NaturalExpDecay(keras.optimizers.schedules.LearningRateSchedule):
    """`initial_learning_rate` * exp(-`decay_rate` * step / `decay_steps`), with whole quotients for `staircase`."""

    def __init__(
        self, initial_learning_rate: float, decay_steps: float, decay_rate: float, staircase: bool = False
    ) -> None:
        super().__init__()
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps, self.decay_rate, self.staircase = decay_steps, decay_rate, staircase

    def __call__(self, step: Any) -> Any:
        passed = ops.cast(step, "float32") / self.decay_steps
        return self.initial_learning_rate * ops.exp(
            -self.decay_rate * (ops.floor(passed) if self.staircase else passed)
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "decay_steps": self.decay_steps,
            "decay_rate": self.decay_rate,
            "staircase": self.staircase,
        }


class _Proximal(keras.optimizers.Optimizer):
    """Common to optimizers with an L1 and an L2 term of their own. `learning_rate` may be a schedule."""

    def __init__(
        self,
        learning_rate: Any = DEFAULT_LEARNING_RATE,
        l1_regularization: float = 0.0,
        l2_regularization: float = 0.0,
        initial_accumulator_value: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **options)
        self.l1_regularization, self.l2_regularization = l1_regularization, l2_regularization
        self.initial_accumulator_value = initial_accumulator_value

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "l1_regularization": self.l1_regularization,
            "l2_regularization": self.l2_regularization,
            "initial_accumulator_value": self.initial_accumulator_value,
        }

    def _slots(self, variables: Any, name: str, value: float) -> list[Any]:
        initializer = keras.initializers.Constant(value)
        return [self.add_variable_from_reference(each, name, initializer=initializer) for each in variables]

    def _shrink(self, value: Any, rate: Any) -> Any:
        """Nearer to 0 by `rate` * L1, then divided by 1 + `rate` * L2."""
        smaller = ops.sign(value) * ops.maximum(ops.abs(value) - rate * self.l1_regularization, 0.0)
        return smaller / (1.0 + rate * self.l2_regularization)


@keras.saving.register_keras_serializable(package="dlmesh")
class ProximalGradientDescent(_Proximal):
    """A step of gradient descent, then the proximal step of the L1 and L2 terms."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Change `variable`."""
        rate, gradient = ops.cast(learning_rate, variable.dtype), ops.cast(gradient, variable.dtype)
        self.assign(variable, self._shrink(variable - rate * gradient, rate))


@keras.saving.register_keras_serializable(package="dlmesh")
class ProximalAdagrad(_Proximal):
    """As ProximalGradientDescent, with each element's rate divided by the root of its squared gradients' sum."""

    def build(self, variables: Any) -> None:
        """Make the sums."""
        if not self.built:
            super().build(variables)
            self._accumulators = self._slots(variables, "accumulator", self.initial_accumulator_value)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Change `variable`."""
        rate, gradient = ops.cast(learning_rate, variable.dtype), ops.cast(gradient, variable.dtype)
        accumulator = self._accumulators[self._get_variable_index(variable)]
        self.assign(accumulator, accumulator + ops.square(gradient))
        own_rate = rate / ops.sqrt(accumulator)
        self.assign(variable, self._shrink(variable - own_rate * gradient, own_rate))


@keras.saving.register_keras_serializable(package="dlmesh")
class AdagradDA(_Proximal):
    """Adagrad by dual averaging: a weight follows from the sums of all its gradients, not from where it began."""

    def build(self, variables: Any) -> None:
        """Make the sums."""
        if not self.built:
            super().build(variables)
            self._sums = self._slots(variables, "gradient_sum", 0.0)
            self._squares = self._slots(variables, "gradient_square_sum", self.initial_accumulator_value)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Change `variable`."""
        rate, gradient = ops.cast(learning_rate, variable.dtype), ops.cast(gradient, variable.dtype)
        index = self._get_variable_index(variable)
        total, squares = self._sums[index], self._squares[index]
        self.assign(total, total + gradient)
        self.assign(squares, squares + ops.square(gradient))
        step = ops.cast(self.iterations + 1, variable.dtype)
        kept = ops.sign(total) * ops.maximum(ops.abs(total) - self.l1_regularization * step, 0.0)
        self.assign(variable, -rate * kept / (self.l2_regularization * step * rate + ops.sqrt(squares)))


def _given(hyperparameters: Values) -> dict[str, Any]:
    return {
        name: value
        for name, value in hyperparameters.items()
        if value not in ("", None) and not (value == 0 and name in _NEVER_ZERO)
    }


def _needed(given: Values, name: str, policy: str) -> Any:
    value = given.get(name)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name}: is missing; lrpolicy {policy} needs it")
    return value


def _options(given: Values, **names: str) -> dict[str, float]:
    """The arguments whose hyperparameters are given: `argument="hyperparameter"`."""
    return {argument: float(given[name]) for argument, name in names.items() if name in given}


_L1_L2 = {"l1_regularization": "l1_regularization", "l2_regularization": "l2_regularization"}
_ACCUMULATOR = {"initial_accumulator_value": "accumulator"}
_OPTIMIZERS: Mapping[str, Callable[[Any, Values], Optimizer]] = {
    "Adam": lambda rate, given: keras.optimizers.Adam(
        rate, **_options(given, beta_1="beta1", beta_2="beta2", epsilon="epsilon")
    ),
    "Momentum": lambda rate, given: keras.optimizers.SGD(
        rate, momentum=given.get("momentum", DEFAULT_MOMENTUM), nesterov=bool(given.get("nesterov"))
    ),
    "RMSProp": lambda rate, given: keras.optimizers.RMSprop(
        rate,
        centered=bool(given.get("centered")),
        **_options(given, rho="optdecay", momentum="momentum", epsilon="epsilon"),
    ),
    "GradientDescent": lambda rate, given: keras.optimizers.SGD(rate),
    "Adadelta": lambda rate, given: keras.optimizers.Adadelta(
        rate, **_options(given, rho="optdecay", epsilon="epsilon")
    ),
    "Adagrad": lambda rate, given: keras.optimizers.Adagrad(rate, **_options(given, **_ACCUMULATOR, epsilon="epsilon")),
    "AdagradDA": lambda rate, given: AdagradDA(rate, **_options(given, **_L1_L2, **_ACCUMULATOR)),
    "Ftrl": lambda rate, given: keras.optimizers.Ftrl(
        rate,
        **_options(
            given,
            learning_rate_power="lr_power",
            l1_regularization_strength="l1_regularization",
            l2_regularization_strength="l2_regularization",
            **_ACCUMULATOR,
        ),
    ),
    "ProximalGradientDescent": lambda rate, given: ProximalGradientDescent(rate, **_options(given, **_L1_L2)),
    "ProximalAdagrad": lambda rate, given: ProximalAdagrad(rate, **_options(given, **_L1_L2, **_ACCUMULATOR)),
}
