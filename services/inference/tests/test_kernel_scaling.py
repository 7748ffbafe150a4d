"""How many kernels a model has, and how models share what there may be."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from inference_service.kernels.domain.pools import NO_LIMIT
from inference_service.kernels.domain.scaling import Demand, share, wanted

counts = st.integers(0, 30)


@st.composite
def situations(draw: st.DrawFn) -> dict[str, object]:
    kernels, minimum = draw(counts), draw(st.integers(0, 5))
    busy = draw(st.integers(0, kernels))
    idle = draw(st.lists(st.floats(0, 100), max_size=kernels - busy))
    maximum = draw(st.one_of(st.just(NO_LIMIT), st.integers(max(1, minimum), 20)))
    return {
        "kernels": kernels,
        "busy": busy,
        "pending": draw(st.integers(0, 200)),
        "batch_size": draw(st.integers(1, 16)),
        "minimum": minimum,
        "maximum": maximum,
        "idle_seconds": idle,
        "release_seconds": draw(st.floats(0, 100)),
    }


@given(situations())
def test_the_number_keeps_to_its_bounds(situation: dict) -> None:
    number = wanted(**situation)
    assert number >= situation["minimum"]
    assert situation["maximum"] == NO_LIMIT or number <= situation["maximum"]


@given(situations())
def test_who_waits_gets_kernels_up_to_the_most(situation: dict) -> None:
    number, batches = wanted(**situation), -(-situation["pending"] // situation["batch_size"])
    most = situation["maximum"]
    assert number >= situation["busy"] + batches or number == most
    # Never one without a reason: a batch that waits, a task in hand, the least, or one that is still there.
    assert number <= max(situation["minimum"], situation["busy"] + batches, situation["kernels"])


@given(situations(), st.integers(1, 100))
def test_more_that_waits_never_means_fewer(situation: dict, more: int) -> None:
    assert wanted(**{**situation, "pending": situation["pending"] + more}) >= wanted(**situation)


def test_kernels_are_released_when_they_have_been_idle_for_long_enough() -> None:
    idle = {"kernels": 3, "busy": 0, "pending": 0, "batch_size": 8, "maximum": 4, "release_seconds": 60.0}
    assert wanted(**idle, minimum=0, idle_seconds=[59.0, 59.0, 59.0]) == 3
    assert wanted(**idle, minimum=0, idle_seconds=[61.0, 59.0, 60.0]) == 1
    assert wanted(**idle, minimum=0, idle_seconds=[61.0, 61.0, 61.0]) == 0
    assert wanted(**idle, minimum=1, idle_seconds=[61.0, 61.0, 61.0]) == 1
    # Those that start are no idle ones.
    assert wanted(**idle, minimum=0, idle_seconds=[]) == 3


demands = st.builds(
    lambda minimum, more, pending, oldest: Demand(minimum + more, minimum, pending, oldest if pending else 0.0),
    *(st.integers(0, 3), st.integers(0, 6), st.integers(0, 20), st.floats(0, 100)),
)


@given(st.lists(demands, max_size=12), st.integers(0, 20))
def test_shares_are_fair(demands: list[Demand], places: int) -> None:
    shares = share(demands, places)
    assert sum(shares) == min(places, sum(demand.wanted for demand in demands))
    for number, demand in zip(shares, demands, strict=True):
        assert number <= demand.wanted
    for one, poor in enumerate(demands):
        for other in range(len(demands)):
            is_short = shares[one] < poor.wanted
            if is_short and not shares[one]:
                assert shares[other] <= 1
                # Nobody without a task has the place of somebody with one.
                assert not poor.pending or demands[other].pending or not shares[other]
            if is_short and shares[one] < poor.minimum:
                assert shares[other] <= max(1, demands[other].minimum)
            if is_short:
                assert shares[other] <= max(shares[one] + 1, demands[other].minimum)


def test_nobody_gets_more_by_having_more_models() -> None:
    greedy = [Demand(3, pending=5, oldest_seconds=100.0, owner="ann") for _ in range(4)]
    modest = Demand(2, pending=1, oldest_seconds=1.0, owner="bob")
    assert share([*greedy, modest], 4) == [1, 1, 1, 0, 1]
    assert share([*greedy, modest], 1) == [1, 0, 0, 0, 0]
    assert share([*greedy, replace(modest, wanted=1)], 6) == [2, 1, 1, 1, 1]


def test_who_waits_the_longest_gets_the_last_place() -> None:
    hungry = [Demand(2, pending=5, oldest_seconds=seconds) for seconds in (1.0, 9.0, 4.0)]
    assert share(hungry, 1) == [0, 1, 0]
    assert share(hungry, 2) == [0, 1, 1]
    assert share(hungry, 5) == [1, 2, 2]
    assert share([Demand(5), Demand(5), Demand(1)], 7) == [3, 3, 1]
