"""The server of ASYNC: the steps of a global batch go as far as one step of SYNC, whichever optimizer makes them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import cycle

import pytest
import torch
from dlmesh_sdk.fabric_async import AsyncRun, ParameterServer
from dlmesh_sdk.gang import Gang
from torch import Tensor

BATCHES, PARTS = 25, 4
MAKERS = {
    "SGD": lambda weights: torch.optim.SGD(weights, 0.1),
    "SGD with weight decay": lambda weights: torch.optim.SGD(weights, 0.1, weight_decay=0.1),
    "Adam": lambda weights: torch.optim.Adam(weights, 0.1),
    "AdamW": lambda weights: torch.optim.AdamW(weights, 0.1, weight_decay=0.1),
    # Its mean of squares begins at 0, which makes the first steps long; it forgets that soon.
    "RMSprop": lambda weights: torch.optim.RMSprop(weights, 0.1, alpha=0.1),
}


def slope(number: int) -> Tensor:
    """The gradient [1] of batch `number`: its mean over the parts of a global batch is 1."""
    return torch.tensor([1 + 0.1 * (number % PARTS - (PARTS - 1) / 2)])


def sync(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> float:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = make([weight])
    for _ in range(BATCHES):
        weight.grad = torch.ones(1)
        optimizer.step()
    return weight.item()


def by_turns(make: Callable[[list[Tensor]], torch.optim.Optimizer], workers: int) -> float:
    """All batches, by workers that are equally fast: each brings its gradients and takes the next batch."""
    weight = torch.zeros(1, requires_grad=True)
    server = ParameterServer([weight], make([weight]), BATCHES * PARTS, share=1 / PARTS)
    taken = [server.take() for _ in range(workers)]
    for worker in cycle(range(workers)):
        number, seen, _ = taken[worker]
        if number < 0:
            break
        assert server.bring(number, seen, slope(number), 0.0, 0.0)
        taken[worker] = server.take()
    assert server.step == BATCHES * PARTS
    return weight.item()


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("optimizer", MAKERS)
def test_a_global_batch_goes_as_far_as_a_step_of_sync(optimizer: str, workers: int) -> None:
    make = MAKERS[optimizer]
    assert by_turns(make, workers) == pytest.approx(sync(make), rel=0.03)


def test_what_is_staler_than_a_global_batch_counts_less_and_rates_stay_what_they_are() -> None:
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    rate = torch.tensor(0.8)
    groups = [{"params": [weights[0]], "lr": 0.4}, {"params": [weights[1]], "lr": rate}]
    server = ParameterServer(weights, torch.optim.SGD(groups, foreach=False), 100, share=1 / PARTS)
    optimizer = server._optimizer
    _, seen, _ = server.take()
    for _ in range(7):
        number, now, _ = server.take()
        server.bring(number, now, torch.zeros(2), 0.0, 0.0)
    server.bring(0, seen, torch.ones(2), 0.0, 0.0)
    assert [weight.item() for weight in weights] == pytest.approx([-0.4 / 8, -0.8 / 8])
    assert optimizer.param_groups[0]["lr"] == 0.4
    assert optimizer.param_groups[1]["lr"] is rate
    assert float(rate) == pytest.approx(0.8)


def test_rates_come_back_after_a_step_that_failed() -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], 0.4)
    server = ParameterServer([weight], optimizer, 1, share=1 / PARTS)

    def fails(*_: object) -> None:
        raise RuntimeError("a hook of the program")

    optimizer.register_step_pre_hook(fails)
    number, seen, _ = server.take()
    with pytest.raises(RuntimeError):
        server.bring(number, seen, torch.ones(1), 0.0, 0.0)
    assert optimizer.param_groups[0]["lr"] == 0.4


def test_no_step_is_made_while_a_callback_changes_rates() -> None:
    weight = torch.zeros(1, requires_grad=True)
    run = AsyncRun.__new__(AsyncRun)
    run.gang = Gang(0, 0, 1, torch.device("cpu"))
    run._server = ParameterServer([weight], torch.optim.SGD([weight], 0.4), 1)
    was_free = []

    class Policy:
        def on_epoch_end(self, epoch: int, save_model: object) -> None:
            other = threading.Thread(target=lambda: was_free.append(run._server.lock.acquire(blocking=False)))
            other.start()
            other.join()

    run.callbacks = [Policy()]
    run.tell("on_epoch_end", 0, None)
    assert was_free == [False]
