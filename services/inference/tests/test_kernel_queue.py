"""Tasks that wait: their order, their limits, and those that come back."""

from __future__ import annotations

from pathlib import Path

import pytest
from inference_service.kernels.domain.pools import GpuUse, KernelTask, QueueFullError
from inference_service.kernels.engine.gpus import Gpus, find_gpus
from inference_service.kernels.engine.rates import SECONDS, Rates
from inference_service.kernels.engine.starter import imports_torch
from inference_service.kernels.engine.task_queue import TaskQueue, Ticket


def fill(queue: TaskQueue, number: int, text: str = "x") -> list[Ticket]:
    return [queue.add(KernelTask(str(index), text), float(index)) for index in range(number)]


async def test_batches_are_taken_in_order_and_no_larger_than_asked() -> None:
    queue = TaskQueue(100, 1000)
    tickets = fill(queue, 5)
    assert queue.oldest_seconds(10.0) == 10.0
    assert queue.take(3) == tickets[:3]
    assert queue.oldest_seconds(10.0) == 7.0
    assert queue.take(3) == tickets[3:]
    assert queue.take(3) == []


async def test_what_comes_back_stands_in_front_and_alone_where_it_must() -> None:
    queue = TaskQueue(100, 1000)
    tickets = fill(queue, 6)
    assert queue.take(3) == tickets[:3]
    for ticket in tickets[:2]:
        ticket.is_alone = True
    queue.give_back(tickets[:3])
    assert [queue.take(8) for _ in range(3)] == [[tickets[0]], [tickets[1]], tickets[2:]]


async def test_one_that_must_be_alone_joins_no_batch() -> None:
    queue = TaskQueue(100, 1000)
    tickets = fill(queue, 3)
    tickets[1].is_alone = True
    assert [queue.take(8) for _ in range(3)] == [tickets[:1], tickets[1:2], tickets[2:]]


async def test_who_has_gone_is_not_served() -> None:
    queue = TaskQueue(100, 1000)
    tickets = fill(queue, 3)
    queue.take(1)
    queue.leave(tickets[0])
    tickets[0].answer.cancel()
    queue.give_back(tickets[:1])
    queue.leave(tickets[1])
    assert len(queue) == 1
    assert queue.take(8) == tickets[2:]


async def test_limits_count_what_waits_and_what_runs() -> None:
    queue = TaskQueue(3, 1000)
    tickets = fill(queue, 3)
    queue.take(2)
    with pytest.raises(QueueFullError, match="3 tasks wait or run; allowed are 3"):
        fill(queue, 1)
    queue.leave(tickets[0])
    fill(queue, 1)

    queue = TaskQueue(100, 10)
    tickets = fill(queue, 2, "12345")
    with pytest.raises(QueueFullError, match="tasks of 10 bytes wait or run; allowed are 10"):
        fill(queue, 1)
    queue.leave(tickets[1])
    fill(queue, 1, "12345")


async def test_a_task_beyond_all_limits_is_taken_when_it_is_the_only_one() -> None:
    queue = TaskQueue(100, 10)
    fill(queue, 1, "12345678901234567890")
    with pytest.raises(QueueFullError):
        fill(queue, 1)


def test_rates_are_of_the_last_seconds() -> None:
    rates = Rates()
    for number in range(100):
        rates.count(10, number / 10)
    assert rates.a_second(9.9) == (100 / SECONDS, 1000 / SECONDS)
    assert rates.a_second(14.5) == (50 / SECONDS, 500 / SECONDS)
    assert rates.a_second(30.0) == (0.0, 0.0)


def test_gpus_are_none_all_or_one_of_ones_own(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert find_gpus({}, tmp_path) == ["0", "1"]
    assert find_gpus({"CUDA_VISIBLE_DEVICES": "GPU-a, 3"}, tmp_path) == ["GPU-a", "3"]
    assert find_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
    gpus = Gpus(["0", "1"])
    assert gpus.take(GpuUse.NO) == ""
    assert gpus.take(GpuUse.SHARED) == "0,1"
    own = [gpus.take(GpuUse.EXCLUSIVE) for _ in range(3)]
    assert own == ["0", "1", None]
    gpus.give_back(GpuUse.SHARED, "0,1")
    gpus.give_back(GpuUse.EXCLUSIVE, "0")
    assert gpus.take(GpuUse.EXCLUSIVE) == "0"


@pytest.mark.parametrize(
    ("text", "is_so"),
    [
        ("import torch\n", True),
        ("def f():\n    from torch.nn import Linear\n", True),
        ("import random, os.path , torch\n", True),
        ("import random, torchless\n", False),
        ("# import torch\nprint('from torch import x')\n", False),
        ("import torchless\n", False),
    ],
)
def test_programs_that_import_torch_are_known(tmp_path: Path, text: str, is_so: bool) -> None:
    (tmp_path / "kernel.py").write_text("import net\n")
    (tmp_path / "net.py").write_text(text)
    (tmp_path / "pipe.py").symlink_to("/dev/zero")
    assert imports_torch(tmp_path) is is_so
