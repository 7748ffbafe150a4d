"""Ranks on GPUs: who gets which device, what they see of it, and what happens where there are none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queue_room import decide, gang, placements, starts, waiting
from scheduling_service.domain.gpus import WHOLE, Gpus, Placement
from scheduling_service.domain.job import Job, Spec
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
    pool = Gpus(1, len(free))
    for device, part in enumerate(free):
        pool.take([[device]], WHOLE - part)
    assert pool.fitting(ranks, devices_per_rank, share) == len(placement)
    assert list(pool.free) == free
    assert pool.place(ranks, devices_per_rank, share) == placement
    assert list(pool.free) == left
    pool.give(placement, share)
    assert list(pool.free) == free


def test_a_rank_has_its_devices_on_one_host_and_whole_hosts_stay_whole() -> None:
    pool = Gpus(3, 4)
    assert pool.place(1, 1) == [[0]]
    # 3 are left on the first host: that is where the next three go.
    assert pool.place(1, 3) == [[1, 2, 3]]
    assert pool.place(2, 3) == [[4, 5, 6], [8, 9, 10]]
    assert pool.place(1, 2) == []
    assert pool.place(1, 5) == []
    assert pool.place(2, 1) == [[7], [11]]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.sampled_from([20, 50, WHOLE])), max_size=30))
def test_nothing_is_promised_twice(wanted: list[tuple[int, int, int]]) -> None:
    pool = Gpus(2, 3)
    held = []
    for ranks, per_rank, share in wanted:
        per_rank = per_rank if share == WHOLE else 1
        placement = pool.place(ranks, per_rank, share)
        assert all(len({device // 3 for device in devices}) <= 1 for devices in placement)
        held.append((placement, share))
        taken = [0] * 6
        for placed, part in held:
            for devices in placed:
                for device in devices:
                    taken[device] += part
        assert [WHOLE - free for free in pool.free] == taken
        assert max(taken) <= WHOLE
        if len(held) % 3 == 0:
            pool.give(*held.pop(0))


@pytest.mark.parametrize(
    ("gpus_per_rank", "percentage", "devices", "share"),
    [(0, 0, 0, WHOLE), (2, 0, 2, WHOLE), (2, 100, 2, WHOLE), (0, 50, 1, 50), (1, 50, 1, 50)],
)
def test_a_percentage_is_a_share_of_one_device(gpus_per_rank: int, percentage: int, devices: int, share: int) -> None:
    spec = Spec("n", "training", "ann", 1, ["x"], gpus_per_rank=gpus_per_rank, gpu_percentage=percentage)
    assert (spec.gpus_of_rank, spec.gpu_share) == (devices, share)


def test_jobs_wait_for_gpus_and_say_for_which() -> None:
    jobs = [waiting("a", gpu_percentage=50), waiting("b", gpus_per_rank=1)]
    decided = decide(jobs, 8, gpus=1)
    assert (starts(decided), placements(decided)) == ({"a": 1}, {"a": [[0]]})
    assert decided.reasons == {"b": "needs 1 whole GPUs for each of 1 rank, free are 50 %; runs next"}
    decided = decide(jobs, 8, gpus=2)
    assert placements(decided) == {"a": [[0]], "b": [[1]]}


def test_elastic_gangs_take_no_more_ranks_than_gpus() -> None:
    half = gang("h", 1, gpus=[[1]], gpu_percentage=50)
    assert placements(decide([half, waiting("e", 8, 1, gpus_per_rank=1)], 8, gpus=3)) == {"e": [[0], [2]]}
    running = gang("e", 1, 1, 8, gpus=[[0]], gpus_per_rank=1)
    assert decide([running], 8, gpus=2).resize == {"e": "grows from 1 to 2 ranks"}
    assert decide([running, gang("h", 1, gpus=[[1]], gpu_percentage=50)], 8, gpus=2).resize == {}


def test_elastic_gangs_give_gpus_to_those_that_wait_for_them() -> None:
    def old(**changes: Any) -> Job:
        return gang("old", 2, 1, 2, gpus_per_rank=1, gpus=[[0], [1]], **changes)

    def young(**changes: Any) -> Job:
        return gang("young", 3, 1, 3, gpus_per_rank=1, gpus=[[2], [3], [4]], **changes)

    def rigid(**changes: Any) -> Job:
        return gang("rigid", 1, gpus_per_rank=1, gpus=[[5]], **changes)

    def room_for(ranks: int, *running: Job) -> dict[str, str]:
        decided = decide([waiting("w", ranks, gpus_per_rank=1), *running], 16, gpus=6)
        assert not decided.start
        assert "runs next" in decided.reasons["w"]
        return dict(decided.resize)

    assert room_for(1, old(), young(), rigid()) == {"young": "shrinks from 3 to 2 ranks to make room for W"}
    assert room_for(3, old(), young(), rigid()) == {
        "young": "shrinks from 3 to 1 rank to make room for W",
        "old": "shrinks from 2 to 1 rank to make room for W",
    }
    # Giving all that they can would not be enough: nobody is disturbed.
    assert room_for(4, old(), young(), rigid()) == {}
    # One is on its way already.
    assert room_for(1, old(), young(resizing=True), rigid()) == {}
    assert room_for(1, old(), young(), rigid(leaving=True)) == {}
    # A device is free, two are coming.
    assert room_for(4, old(), young(resizing=True)) == {"old": "shrinks from 2 to 1 rank to make room for W"}


def test_a_gang_that_shrank_for_gpus_comes_back_smaller() -> None:
    jobs = [waiting("w", 1, gpus_per_rank=1), waiting("e", 2, 1, resizing=True, gpus_per_rank=1)]
    decided = decide(jobs, 8, gpus=2)
    assert (starts(decided), placements(decided)) == ({"e": 1, "w": 1}, {"e": [[0]], "w": [[1]]})


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
