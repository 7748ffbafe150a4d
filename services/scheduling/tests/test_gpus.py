"""Ranks on GPUs: who gets which device, what they see of it, and what happens where there are none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scheduling_service.domain.gpus import WHOLE, Placement, allocate, free_shares
from scheduling_service.domain.job import Spec
from scheduling_service.domain.policy import Running, Waiting, plan
from scheduling_service.engines.local.keeper import gpu_environment


@pytest.mark.parametrize(
    ("free", "ranks", "devices_per_rank", "share", "placement", "left"),
    [
        ([100], 2, 1, 50, [[0], [0]], [0]),
        ([100, 100], 2, 1, 50, [[0], [0]], [0, 100]),
        ([100, 50], 1, 1, 50, [[1]], [100, 0]),
        ([100, 30, 60], 3, 1, 30, [[1], [2], [2]], [100, 0, 0]),
        ([100, 50], 2, 1, WHOLE, [[0]], [0, 50]),
        ([100, 100, 100], 2, 1, WHOLE, [[0], [1]], [0, 0, 100]),
        ([100, 100, 100, 100], 2, 2, WHOLE, [[0, 1], [2, 3]], [0, 0, 0, 0]),
        ([100, 100, 100], 2, 2, WHOLE, [[0, 1]], [0, 0, 100]),
        ([100], 3, 1, 34, [[0], [0]], [32]),
        ([100], 3, 0, WHOLE, [[], [], []], [100]),
        ([], 1, 1, 50, [], []),
    ],
)
def test_whole_devices_stay_whole(
    free: list[int], ranks: int, devices_per_rank: int, share: int, placement: Placement, left: list[int]
) -> None:
    assert allocate(free, ranks, devices_per_rank, share) == placement
    assert free == left


def test_what_is_free_is_what_running_gangs_leave() -> None:
    taken: list[tuple[Placement, int]] = [([[0], [0]], 30), ([[1, 2]], WHOLE), ([], WHOLE)]
    assert free_shares(4, taken) == [40, 0, 0, 100]


@pytest.mark.parametrize(
    ("gpus_per_rank", "percentage", "devices", "share"),
    [(0, 0, 0, WHOLE), (2, 0, 2, WHOLE), (2, 100, 2, WHOLE), (0, 50, 1, 50), (1, 50, 1, 50)],
)
def test_a_percentage_is_a_share_of_one_device(gpus_per_rank: int, percentage: int, devices: int, share: int) -> None:
    spec = Spec("n", "training", "ann", 1, ["x"], gpus_per_rank=gpus_per_rank, gpu_percentage=percentage)
    assert (spec.gpus_of_rank, spec.gpu_share) == (devices, share)


def test_jobs_wait_for_gpus_and_those_without_one_go_first_come_first_served() -> None:
    half = {"gpus": 1, "gpu_share": 50}
    waiting = [Waiting("a", "A", 1, **half), Waiting("b", "B", 1, gpus=1), Waiting("c", "C", 1)]  # type: ignore[arg-type]
    decided = plan(waiting, [], 8, free_gpus=[100])
    assert (decided.start, decided.gpus) == ({"a": 1}, {"a": [[0]]})
    assert decided.reasons == {
        "b": "needs 1 whole GPUs for each of 1 rank, free are 50 %; runs next",
        "c": "behind B, which runs next",
    }
    decided = plan(waiting, [], 8, free_gpus=[100, 100])
    assert (decided.start, decided.gpus["b"]) == ({"a": 1, "b": 1, "c": 1}, [[1]])


def test_elastic_gangs_take_no_more_ranks_than_gpus() -> None:
    waiting = [Waiting("e", "E", 8, fewest=1, gpus=1)]
    assert plan(waiting, [], 8, free_gpus=[100, 50, 100]).gpus == {"e": [[0], [2]]}
    running = [Running("e", "E", 1, 1, 8, 9.0, gpus=1)]
    assert plan([], running, 8, free_gpus=[0, 100]).resize == {"e": "grows from 1 to 2 ranks"}
    assert plan([], running, 8, free_gpus=[0, 50]).resize == {}


def test_elastic_gangs_give_gpus_to_those_that_wait_for_them() -> None:
    old = Running("old", "Old", 2, 1, 2, gpus=1, placement=[[0], [1]])
    young = Running("young", "Young", 3, 1, 3, gpus=1, placement=[[2], [3], [4]])
    rigid = Running("rigid", "Rigid", 1, gpus=1, placement=[[5]])
    busy = {"slots": 16, "free_gpus": [0] * 6}

    def room_for(ranks: int, running: list[Running]) -> dict[str, str]:
        decided = plan([Waiting("w", "W", ranks, gpus=1)], running, **busy)  # type: ignore[arg-type]
        assert not decided.start
        assert "runs next" in decided.reasons["w"]
        return dict(decided.resize)

    assert room_for(1, [old, young, rigid]) == {"young": "shrinks from 3 to 2 ranks to make room for W"}
    assert room_for(3, [old, young, rigid]) == {
        "young": "shrinks from 3 to 1 rank to make room for W",
        "old": "shrinks from 2 to 1 rank to make room for W",
    }
    # Giving all that they can would not be enough: nobody is disturbed.
    assert room_for(4, [old, young, rigid]) == {}
    # One is on its way already.
    assert room_for(1, [old, replace(young, resizing=True), rigid]) == {}
    assert room_for(1, [old, young, replace(rigid, leaving=True)]) == {}
    assert room_for(3, [old, replace(young, resizing=True)]) == {"old": "shrinks from 2 to 1 rank to make room for W"}


def test_a_gang_that_shrank_for_gpus_comes_back_smaller() -> None:
    waiting = [Waiting("w", "W", 1, gpus=1), Waiting("e", "E", 2, fewest=1, resizing=True, gpus=1)]
    decided = plan(waiting, [], 8, free_gpus=[100, 100])
    assert (decided.start, decided.gpus) == ({"e": 1, "w": 1}, {"e": [[0]], "w": [[1]]})


@pytest.mark.parametrize(
    ("gpus", "seen"),
    [
        ([[2], [5]], [("2,5", None), ("2,5", None)]),
        ([[1], [1]], [("1", "0"), ("1", "0")]),
        ([[0, 1], [2, 3]], [("0,1", "0"), ("2,3", "0")]),
        ([[3]], [("3", None)]),
    ],
)
def test_a_rank_finds_its_device_by_its_local_rank(gpus: list[list[int]], seen: list[tuple[str, str | None]]) -> None:
    environments = [gpu_environment(gpus, rank) for rank in range(len(gpus))]
    assert [(given["CUDA_VISIBLE_DEVICES"], given.get("LOCAL_RANK")) for given in environments] == seen
