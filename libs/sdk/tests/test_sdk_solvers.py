"""Optimizers and learning rate policies do what torch's own do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dlmesh_sdk import pth_solvers


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([1.0, -2.0]))


def descend(optimizer: torch.optim.Optimizer, weights: torch.nn.Parameter, steps: int = 5) -> list[float]:
    for _ in range(steps):
        optimizer.zero_grad()
        (weights**2).sum().backward()
        optimizer.step()
    return weights.tolist()


OPTIMIZERS: list[tuple[str, dict[str, Any], type[torch.optim.Optimizer], dict[str, Any]]] = [
    ("SGD", {"momentum": 0.5, "weightdecay": 0.1}, torch.optim.SGD, {"momentum": 0.5, "weight_decay": 0.1}),
    ("SGD", {}, torch.optim.SGD, {}),
    ("SGD", {"momentum": 0.8, "nesterov": True}, torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
    ("SGD", {"momentum": 0.8, "dampening": 0.3}, torch.optim.SGD, {"momentum": 0.8, "dampening": 0.3}),
    ("Adam", {"weightdecay": 0.1, "epsilon": 1e-3}, torch.optim.Adam, {"weight_decay": 0.1, "eps": 1e-3}),
    ("sgd", {"nesterov": False, "epsilon": 0}, torch.optim.SGD, {}),
    ("Adam", {"beta1": 0.0, "amsgrad": True}, torch.optim.Adam, {"betas": (0.0, 0.999), "amsgrad": True}),
    (
        "AdaGrad",
        {"accumulator": 0.5, "lr_decay": 0.1},
        torch.optim.Adagrad,
        {"initial_accumulator_value": 0.5, "lr_decay": 0.1},
    ),
    ("RMSProp", {"alpha": 0.5, "centered": True}, torch.optim.RMSprop, {"alpha": 0.5, "centered": True}),
    ("RMSProp", {"alpha": 0}, torch.optim.RMSprop, {"alpha": 0.0}),
    ("ASGD", {"lambd": 0, "t0": 0}, torch.optim.ASGD, {"lambd": 0.0, "t0": 0.0}),
    ("AdaGrad", {}, torch.optim.Adagrad, {}),
    ("Adagrad", {}, torch.optim.Adagrad, {}),
    ("AdaDelta", {}, torch.optim.Adadelta, {}),
    ("RMSProp", {"momentum": 0.3}, torch.optim.RMSprop, {"momentum": 0.3}),
    ("ASGD", {}, torch.optim.ASGD, {}),
    (
        "ASGD",
        {"lambd": 0.01, "alpha": 0.5, "t0": 2.0, "weightdecay": 0.1},
        torch.optim.ASGD,
        {"lambd": 0.01, "alpha": 0.5, "t0": 2.0, "weight_decay": 0.1},
    ),
    ("Adadelta", {"rho": 0.5, "epsilon": 1e-3}, torch.optim.Adadelta, {"rho": 0.5, "eps": 1e-3}),
    ("Adamax", {"beta1": 0.5, "beta2": 0.6}, torch.optim.Adamax, {"betas": (0.5, 0.6)}),
    ("Adamax", {}, torch.optim.Adamax, {}),
    ("Rprop", {}, torch.optim.Rprop, {}),
]


@pytest.mark.parametrize(("solver", "extra", "expected", "arguments"), OPTIMIZERS)
def test_optimizer_descends_like_torch(
    solver: str, extra: dict[str, Any], expected: type[torch.optim.Optimizer], arguments: dict[str, Any]
) -> None:
    ours, theirs = parameter(), parameter()
    optimizer = pth_solvers.build_optimizer([ours], {"solvertype": solver, "learningrate": 0.05, **extra})
    reference = expected([theirs], lr=0.05, **arguments)  # type: ignore[call-arg]
    assert type(optimizer) is expected
    assert descend(optimizer, ours) == descend(reference, theirs)


def test_sparse_adam_descends_like_torch() -> None:
    def descend_sparse(make: Any) -> list[list[float]]:
        torch.manual_seed(3)
        table = torch.nn.Embedding(5, 2, sparse=True)
        optimizer = make(table.parameters())
        for _ in range(4):
            optimizer.zero_grad()
            table(torch.tensor([1, 3, 3])).pow(2).sum().backward()
            optimizer.step()
        weights: list[list[float]] = table.weight.tolist()
        return weights

    given = {"solvertype": "SparseAdam", "learningrate": 0.05, "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-4}
    assert descend_sparse(lambda weights: pth_solvers.build_optimizer(weights, given)) == descend_sparse(
        lambda weights: torch.optim.SparseAdam(list(weights), 0.05, (0.5, 0.9), 1e-4)
    )


@pytest.mark.parametrize("solver", ["Ftrl", "Momentum", "Nesterov"])
def test_unknown_solver_names_the_known(solver: str) -> None:
    with pytest.raises(ValueError, match=rf"solvertype: '{solver}'.*SGD, Adam.*SparseAdam.*Rprop"):
        pth_solvers.build_optimizer([parameter()], {"solvertype": solver})


def test_stepsize_zero_means_not_given() -> None:
    assert rates({"lrpolicy": "step", "stepsize": 0, "gamma": 0.5}, 3) == [1, 0.5, 0.25]


def rates(policy: dict[str, Any], epochs: int = 6) -> list[float]:
    optimizer = torch.optim.SGD([parameter()], 1.0)
    scheduler = pth_solvers.build_scheduler(optimizer, policy, epochs)
    curve = []
    for _ in range(epochs):
        curve.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)
        elif scheduler is not None:
            scheduler.step()
    return curve


@pytest.mark.parametrize(
    ("policy", "curve"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"lrpolicy": "fixed"}, [1, 1, 1, 1, 1, 1]),
        ({"lrpolicy": "step", "stepsize": 2, "gamma": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ({"lrpolicy": "multistep", "stepvalues": "1, 4", "gamma": 0.1}, [1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        ({"lrpolicy": "Exponential", "gamma": 0.5}, [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
        ({"lrpolicy": "cosineannealing", "t_max": 2}, [1, 0.5, 0, 0.5, 1, 0.5]),
        ({"lrpolicy": "cosineannealing", "t_max": 2, "eta_min": 0.5}, [1, 0.75, 0.5, 0.75, 1, 0.75]),
        ({"lrpolicy": "reducelronplateau", "patience": 1, "factor": 0.5}, [1, 1, 1, 0.5, 0.5, 0.25]),
        ({"lrpolicy": "reducelronplateau", "patience": 0, "factor": 0.5, "cooldown": 1}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ({"lrpolicy": "reducelronplateau", "patience": 0, "factor": 0.5, "eps": 0.3}, [1, 1, 0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_learning_rate_curve(policy: dict[str, Any], curve: list[float]) -> None:
    assert rates(policy) == pytest.approx(curve, abs=1e-12)


def test_cosine_annealing_spans_the_epochs() -> None:
    assert rates({"lrpolicy": "cosineannealing"}, epochs=5)[-1] < 0.1


def test_unknown_policy_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"lrpolicy: 'poly'.*fixed, step.*reducelronplateau"):
        rates({"lrpolicy": "poly"})
