"""The real queue on an imagined cluster and clock: whatever comes, what it promises holds."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from scheduling_service.domain.instance_group import InstanceGroup, UserShare
from scheduling_service.domain.job import Spec, State
from scheduling_service.domain.policies.registry import POLICIES
from scheduling_service.simulation.cluster import Arrival, BrokenPromiseError, ImaginedCluster, Outcome
from scheduling_service.simulation.traces import Mix, draw


def simulate(group: InstanceGroup, arrivals: list[Arrival], shares: tuple[UserShare, ...] = ()) -> Outcome:
    return asyncio.run(ImaginedCluster(group, arrivals, shares).run())


def group(slots: int = 32, gpus: int = 0, hosts: int = 1, **changes: object) -> InstanceGroup:
    return replace(InstanceGroup("g", "lab", slots, gpus, hosts), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_whatever_comes_every_job_ends_and_nothing_is_given_out_twice(policy: str, seed: int) -> None:
    mix = Mix(jobs=400, slots=32, load=1.3, users=5, failing_part=0.1)
    outcome = simulate(group(policy=policy), draw(mix, seed))
    assert {job.state for job in outcome.jobs.values()} == {State.FINISHED}
    retried = [job for job in outcome.jobs.values() if job.program_failures]
    assert retried
    assert all(job.platform_losses == 0 for job in outcome.jobs.values())


@pytest.mark.slow
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_many_jobs_on_hosts_with_gpus_that_some_share(policy: str) -> None:
    mix = Mix(jobs=1500, slots=64, load=1.2, gpus_per_rank=1, shared_gpu_part=0.3)
    outcome = simulate(group(8, 8, 8, policy=policy, max_slots_per_user=48), draw(mix, 7))
    assert {job.state for job in outcome.jobs.values()} == {State.FINISHED}
    assert outcome.utilization > 0.6


def rigid(
    number: int, ranks: int, seconds: float, *, at: float = 0.0, limit: float = 0.0, owner: str = "ann"
) -> Arrival:
    spec = Spec(f"job {number}", "training", owner, ranks, ("x",), max_seconds=limit)
    return Arrival(at, f"{number:04}", spec, ranks * seconds)


def test_a_large_gang_starts_no_later_than_promised_however_many_small_ones_pass_it() -> None:
    first = rigid(0, 8, 1000.0, limit=1000.0)
    large = rigid(1, 10, 100.0, at=1.0, limit=200.0)
    stream = [rigid(number, 1, 50.0, at=number * 2.0, limit=60.0) for number in range(2, 1200)]
    outcome = simulate(group(10, policy="fifo"), [first, large, *stream])
    # The first one has ended after 1000 s, or with its grace at the very latest after 1010.
    assert outcome.started_at["0001"] <= 1010.0
    assert any(outcome.started_at[f"{number:04}"] < 900.0 for number in range(2, 50))


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_short_elastic_jobs_do_not_keep_a_gang_waiting(policy: str) -> None:
    gang = rigid(0, 2, 100.0, at=30.0)
    elastic = Spec("e", "training", "ann", 2, ("x",), min_ranks=1)
    stream = [Arrival(number * 20.0, f"{number:04}", elastic, 50.0) for number in range(1, 400)]
    outcome = simulate(group(2, policy=policy), [gang, *stream])
    assert outcome.wait_seconds("0000") <= 300.0


def test_a_long_chain_falls_whole() -> None:
    first = replace(rigid(0, 1, 1.0), failures=1)
    chain = [
        replace(arrival, spec=replace(arrival.spec, after=(f"{number - 1:04}",)))
        for number, arrival in ((number, rigid(number, 1, 1.0)) for number in range(1, 1500))
    ]
    outcome = simulate(group(4), [first, *chain])
    assert {job.state for job in outcome.jobs.values()} == {State.ERROR}


def test_a_row_that_no_ledger_takes_ends_and_holds_up_nobody() -> None:
    cluster = ImaginedCluster(group(2), [rigid(0, 1, 10.0), rigid(1, 1, 10.0)])
    submit = cluster._submit

    def broken(arrival: Arrival) -> None:
        submit(arrival)
        cluster._rows["0000"].created_at = None  # type: ignore[assignment]

    cluster._submit = broken  # type: ignore[method-assign]
    jobs = asyncio.run(cluster.run()).jobs
    assert jobs["0000"].state is State.ERROR
    assert jobs["0000"].reason.startswith("it cannot be queued")
    assert jobs["0001"].state is State.FINISHED


def test_under_fifo_without_limits_nobody_passes_anybody() -> None:
    mix = Mix(jobs=300, slots=16, load=1.5, elastic_part=0.0, limited_part=0.0, failing_part=0.0)
    outcome = simulate(group(16, policy="fifo"), draw(mix, 3))
    starts = [outcome.started_at[job_id] for job_id in sorted(outcome.jobs)]
    assert starts == sorted(starts)


def test_one_user_with_much_work_does_not_keep_the_others_waiting() -> None:
    flood = [rigid(number, 1, 100.0) for number in range(500)]
    other = [rigid(1000 + number, 1, 100.0, at=10.0, owner="bob") for number in range(5)]
    fair = simulate(group(10, policy="fairshare"), [*flood, *other])
    fifo = simulate(group(10, policy="fifo"), [*flood, *other])
    waits = [max(outcome.wait_seconds(f"{1000 + number:04}") for number in range(5)) for outcome in (fair, fifo)]
    assert waits[0] <= 200.0 < 4000.0 < waits[1]


def test_urgent_jobs_do_not_starve_the_others() -> None:
    usual = rigid(0, 1, 10.0, at=12.0)
    urgent = [
        replace(arrival, spec=replace(arrival.spec, priority=6))
        for arrival in (rigid(number, 1, 20.0, at=number * 10.0) for number in range(1, 1500))
    ]
    outcome = simulate(group(1, policy="priority"), [usual, *urgent])
    # Six points are worth an hour: of those that come in it each computes for 20 s; what comes later goes behind.
    assert 7000.0 <= outcome.wait_seconds("0000") <= 7400.0


def test_dependencies_are_kept_and_a_chain_falls_with_its_first() -> None:
    def after(number: int, *others: int, failures: int = 0) -> Arrival:
        arrival = rigid(number, 1, 10.0)
        spec = replace(arrival.spec, after=tuple(f"{other:04}" for other in others))
        return replace(arrival, spec=spec, failures=failures)

    outcome = simulate(
        group(4), [after(0), after(1, 0), after(2, 0, 1), after(3, failures=1), after(4, 3), after(5, 4)]
    )
    assert [outcome.jobs[f"{number:04}"].state for number in range(3)] == [State.FINISHED] * 3
    starts = [outcome.started_at[f"{number:04}"] for number in range(3)]
    assert starts == sorted(starts)
    assert len({*starts}) == 3
    assert outcome.jobs["0004"].reason == "job 3, which it waits for, ended as ERROR"
    assert outcome.jobs["0005"].reason == "job 4, which it waits for, ended as ERROR"
    assert not {"0004", "0005"} & outcome.started_at.keys()


def test_an_imagined_cluster_notices_what_must_not_be() -> None:
    cluster = ImaginedCluster(group(2), [])
    spec = Spec("n", "training", "ann", 3, ("x",))
    cluster._submit(Arrival(0.0, "a", spec, 1.0))
    job = cluster._rows["a"]
    job.start(3, job.created_at)
    with pytest.raises(BrokenPromiseError, match="3 of 2 slots"):
        asyncio.run(cluster.launch(job, cluster.group))
