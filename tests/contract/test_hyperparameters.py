"""Each hyperparameter counts exactly where models_service says so: programs of the sdk and Caffe's nets are asked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caffe_nets.schema import MESSAGES
from caffe_nets.solver import solver_settings
from dlmesh_sdk import caffe_solvers, pth_solvers
from models_service.domain.hyperparameters import (
    FIELDS,
    POLICY_FIELDS,
    RUN_FIELDS,
    SOLVER_FIELDS,
    check_complete,
    fields_of,
    settle,
)
from servicekit.errors import ServiceError

FRAMEWORKS = ("Caffe", "TensorFlow", "PyTorch")
STEPS = 8
# Of each field a value that is no default.
VALUES: dict[str, Any] = {
    "momentum": 0.8, "weightdecay": 0.1, "epsilon": 0.05, "beta1": 0.5, "beta2": 0.6, "amsgrad": True, "lr_decay": 0.3,
    "accumulator": 0.7, "rho": 0.5, "alpha": 0.5, "centered": True, "lambd": 0.2, "t0": 1.0, "dampening": 0.3,
    "nesterov": True, "optdecay": 0.5, "l1_regularization": 0.1, "l2_regularization": 0.2, "lr_power": -0.3,
    "stepsize": 2, "gamma": 0.5, "stepvalues": "2,3", "power": 2.0, "decaysteps": 4.0, "decayrate": 0.5,
    "staircase": "true", "end_learning_rate": 0.01, "cycle": True, "t_max": 3, "eta_min": 0.05, "mode": "max",
    "factor": 0.3, "patience": 3, "threshold": 0.01, "threshold_mode": "abs", "cooldown": 2, "eps": 1.0,
    "solvertype": "Adam", "lrpolicy": "fixed", "learningrate": 0.3, "maxiteration": 7, "epoch": 3, "hiddenstatesize": 9,
}  # fmt: skip
# What a solver or policy needs so that all its fields can be seen.
BASES: dict[tuple[str, str], dict[str, Any]] = {
    ("PyTorch", "SGD"): {"momentum": 0.5},
    ("PyTorch", "step"): {"stepsize": 3},
    ("PyTorch", "multistep"): {"stepvalues": "3"},
    ("PyTorch", "reducelronplateau"): {"factor": 0.5, "patience": 1, "threshold": 0.1},
    ("TensorFlow", "exponential"): {"decaysteps": 5.0, "decayrate": 0.9},
    ("TensorFlow", "inversetime"): {"decaysteps": 5.0, "decayrate": 0.9},
    ("TensorFlow", "naturalexp"): {"decaysteps": 5.0, "decayrate": 0.9},
    ("TensorFlow", "piecewise"): {"stepvalues": "3", "decayrate": 0.9},
    ("TensorFlow", "polynomial"): {"decaysteps": 5.0},
    ("Caffe", "step"): {"stepsize": 3, "gamma": 0.9},
    ("Caffe", "multistep"): {"stepvalues": "3", "gamma": 0.9},
    ("Caffe", "exp"): {"gamma": 0.9},
    ("Caffe", "inv"): {"gamma": 0.9, "power": 1.0},
    ("Caffe", "poly"): {"power": 1.0},
    ("Caffe", "sigmoid"): {"gamma": -0.3, "stepsize": 3},
}
GRADIENTS = np.random.default_rng(7).normal(size=(STEPS, 3)) * np.geomspace(4.0, 0.2, STEPS)[:, None]
LOSSES = (8.0, 7.9, 7.5, 7.45, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0)


def combinations(table: Any) -> Iterator[tuple[str, str]]:
    return ((framework, word) for framework in FRAMEWORKS for word in table[framework])


def fields_in(table: Any, framework: str) -> set[str]:
    return set(chain.from_iterable(table[framework].values()))


def pytorch_steps(given: dict[str, Any]) -> list[Any]:
    """Where weights and the optimizer's state are after some steps."""
    sparse = given["solvertype"] == "SparseAdam"
    weights = torch.nn.Parameter(torch.tensor([0.5, -0.25, 1.5]))
    optimizer = pth_solvers.build_optimizer([weights], given)
    for gradient in GRADIENTS:
        dense = torch.tensor(gradient, dtype=torch.float32)
        weights.grad = dense.to_sparse() if sparse else dense
        optimizer.step()
    state = optimizer.state[weights]
    return [weights.tolist(), *(state[name].tolist() for name in sorted(state) if torch.is_tensor(state[name]))]


def pytorch_curve(given: dict[str, Any]) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.2)
    scheduler = pth_solvers.build_scheduler(optimizer, given, len(LOSSES))
    rates = []
    for loss in LOSSES:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step(*((loss,) if given["lrpolicy"] == "reducelronplateau" else ()))  # type: ignore[arg-type]
    return rates


def caffe_run(given: dict[str, Any]) -> list[Any]:
    settings = solver_settings(MESSAGES["SolverParameter"](base_lr=0.1, max_iter=20), given)
    weights = torch.nn.Parameter(torch.tensor([0.5, -0.25, 1.5], dtype=torch.float64))
    optimizer = caffe_solvers.build_optimizer([{"params": [weights]}], settings)
    rates = [caffe_solvers.learning_rate(settings, iteration) for iteration in range(STEPS)]
    for rate, gradient in zip(rates, GRADIENTS, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weights.grad = torch.tensor(gradient)
        optimizer.step()
    return [rates, weights.tolist()]


def tensorflow_run(given: dict[str, Any]) -> Any:
    pytest.importorskip("tensorflow", reason="TensorFlow is an optional extra")
    from dlmesh_sdk import tf_solvers

    rate = tf_solvers.build_learning_rate(given)
    curve = [float(rate(step)) for step in range(12)] if callable(rate) else [rate]
    configuration = tf_solvers.build_optimizer(given, 0.1).get_config() | {"name": ""}
    return curve, sorted((name, str(value)) for name, value in configuration.items())


def outcome(framework: str, kind: str, given: dict[str, Any]) -> Any:
    if framework == "PyTorch":
        return pytorch_steps(given) if kind == "solvertype" else pytorch_curve(given)
    return caffe_run(given) if framework == "Caffe" else tensorflow_run(given)


CASES = [("solvertype", SOLVER_FIELDS, *each) for each in combinations(SOLVER_FIELDS)] + [
    ("lrpolicy", POLICY_FIELDS, *each) for each in combinations(POLICY_FIELDS)
]


@pytest.mark.parametrize(
    ("kind", "table", "framework", "word"), CASES, ids=[f"{framework}-{word}" for _, _, framework, word in CASES]
)
def test_a_field_counts_where_it_is_said_to(kind: str, table: Any, framework: str, word: str) -> None:
    base = {kind: word, **BASES.get((framework, word), {})}
    without = outcome(framework, kind, base)
    for name in sorted(fields_in(table, framework)):
        given = {**base, name: VALUES[name]}
        if name in table[framework][word]:
            check_complete(settle({}, given, framework), framework)
            assert outcome(framework, kind, settle({}, given, framework)) != without, name
            continue
        assert outcome(framework, kind, settle({}, given, framework)) == without, name


@pytest.mark.parametrize(
    ("framework", "policy"), [(framework, word) for framework, word in BASES if framework != "PyTorch"]
)
def test_what_a_policy_cannot_do_without_is_asked_for_before_it_fails(framework: str, policy: str) -> None:
    base = {"lrpolicy": policy, **BASES[framework, policy]}
    check_complete(settle({}, base, framework), framework)
    outcome(framework, "lrpolicy", base)
    for name in BASES[framework, policy]:
        without = {key: value for key, value in base.items() if key != name}
        with pytest.raises(ServiceError, match=f"^hyperparameter.{name}: .* lrpolicy {policy} needs it"):
            check_complete(settle({}, without, framework), framework)
        with pytest.raises(ValueError, match="need"):
            outcome(framework, "lrpolicy", without)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_field_that_a_framework_lacks_is_kept_without_effect(framework: str) -> None:
    for name in FIELDS.keys() - {*fields_of(framework, None, None)}:
        assert settle({}, {name: VALUES[name]}, framework) == {name: VALUES[name]}
        assert settle({}, {name: 0}, framework) == {}


def test_all_fields_count_somewhere() -> None:
    assert {name for framework in FRAMEWORKS for name in fields_of(framework, None, None)} == FIELDS.keys()
    assert RUN_FIELDS.keys() == SOLVER_FIELDS.keys() == POLICY_FIELDS.keys() == set(FRAMEWORKS)


def rows_of(section: str) -> list[list[str]]:
    """The cells of the table below a heading of docs/hyperparameters.md."""
    text = (Path(__file__).parents[2] / "docs" / "hyperparameters.md").read_text().partition(f"## {section}\n")[2]
    lines = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_describes_every_field() -> None:
    rows = rows_of("The fields")
    assert [row[0].strip("`") for row in rows] == list(FIELDS)
    for name, allowed, frameworks, meaning in ((row[0].strip("`"), *row[1:]) for row in rows):
        rule = FIELDS[name]
        assert allowed == (rule.allowed if rule else {"solvertype": "a solver", "lrpolicy": "a policy"}[name]), name
        assert frameworks.split(", ") == [each for each in FRAMEWORKS if name in {*fields_of(each, None, None)}], name
        assert meaning, name


@pytest.mark.parametrize(("section", "table"), [("Solvers", SOLVER_FIELDS), ("Learning-rate policies", POLICY_FIELDS)])
def test_the_page_describes_every_solver_and_policy(section: str, table: Any) -> None:
    rows = rows_of(section)
    assert [(row[1], row[0]) for row in rows] == list(combinations(table))
    for word, framework, fields, meaning in rows:
        assert fields.replace("`", "").split() == list(table[framework][word]), (framework, word)
        assert meaning, (framework, word)
