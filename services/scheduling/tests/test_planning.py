"""The queue's decisions, pure: whole gangs, nobody starves, every waiting job knows why."""

from __future__ import annotations

import pytest
from queue_room import decide, gang, starts, waiting
from scheduling_service.domain.instance_group import UserShare
from scheduling_service.domain.job import Job


def test_a_gang_starts_whole_or_waits_and_holds_the_queue() -> None:
    decided = decide([waiting("a", 1), waiting("b", 3), waiting("c", 1), gang("r", 1)], 4)
    assert starts(decided) == {"a": 1}
    assert decided.reasons == {"b": "needs 3 slots at once, 2 of 4 are free; runs next"}
    assert decided.runs_next == "B"


MAKES_ROOM = "needs {} slots at once, {} of {} are free; others make room"
MAKES_ROOM_FOR_ONE = "needs 1 slot, {} of {} are free; others make room"


@pytest.mark.parametrize(
    ("jobs", "slots", "start", "resize", "reasons"),
    [
        # An elastic job starts with what is free, from its fewest on.
        ([waiting("e", 4, 1)], 2, {"e": 2}, {}, {}),
        ([waiting("e", 4, 1), gang("r", 3)], 4, {"e": 1}, {}, {}),
        ([waiting("e", 2, 1)], 8, {"e": 2}, {}, {}),
        ([waiting("e", 4, 2), gang("r", 3)], 4, {}, {}, {"e": "needs 2 slots at once, 1 of 4 are free; runs next"}),
        # It leaves what those behind it need.
        ([waiting("e", 4, 1), waiting("x", 1)], 4, {"e": 3, "x": 1}, {}, {}),
        ([waiting("e", 4, 1), waiting("f", 4, 1)], 4, {"e": 3, "f": 1}, {}, {}),
        # One that ended for a resize goes on first.
        ([waiting("x", 1), waiting("e", 2, 1, resizing=True)], 2, {"e": 1, "x": 1}, {}, {}),
        ([waiting("x", 2), waiting("e", 2, 1, resizing=True)], 2, {"e": 2}, {},
         {"x": "needs 2 slots at once, 1 of 2 are free; runs next"}),
        # It shrinks for a job that fits then, and only as far as that needs.
        ([waiting("x", 1), gang("e", 2, 1, 2)], 2, {}, {"e": "shrinks from 2 to 1 rank to make room for X"},
         {"x": MAKES_ROOM_FOR_ONE.format(0, 2)}),
        ([waiting("x", 2), gang("e", 4, 1, 8)], 5, {}, {"e": "shrinks from 4 to 3 ranks to make room for X"},
         {"x": MAKES_ROOM.format(2, 1, 5)}),
        ([waiting("x", 2, 1), gang("e", 2, 1, 2)], 2, {}, {"e": "shrinks from 2 to 1 rank to make room for X"},
         {"x": MAKES_ROOM_FOR_ONE.format(0, 2)}),
        # The youngest gives first, then the next.
        ([waiting("x", 3), gang("e", 3, 1, 4), gang("f", 3, 1, 4)], 6, {},
         {"f": "shrinks from 3 to 1 rank to make room for X", "e": "shrinks from 3 to 2 ranks to make room for X"},
         {"x": MAKES_ROOM.format(3, 0, 6)}),
        # Never in vain, never below the fewest, never twice.
        ([waiting("x", 2), gang("e", 2, 1, 2)], 2, {}, {},
         {"x": "needs 2 slots at once, 0 of 2 are free; runs next"}),
        ([waiting("x", 1), gang("e", 1, 1, 2), gang("r", 1)], 2, {}, {},
         {"x": "needs 1 slot, 0 of 2 are free; runs next"}),
        ([waiting("x", 1), gang("e", 2, 1, 2, resizing=True)], 2, {}, {}, {"x": MAKES_ROOM_FOR_ONE.format(0, 2)}),
        ([waiting("x", 1), gang("e", 2, 1, 2), gang("r", 2, leaving=True)], 4, {}, {},
         {"x": MAKES_ROOM_FOR_ONE.format(0, 4)}),
        # What is free already is not taken by those behind the one that it is kept for.
        ([waiting("x", 2), waiting("y", 1), gang("e", 3, 1, 4)], 4, {},
         {"e": "shrinks from 3 to 1 rank to make room for X"}, {"x": MAKES_ROOM.format(2, 1, 4)}),
        # It grows when slots are free and nobody waits, one gang at a time.
        ([gang("e", 1, 1, 2)], 2, {}, {"e": "grows from 1 to 2 ranks"}, {}),
        ([gang("e", 1, 1, 8), gang("f", 1, 1, 8)], 4, {}, {"e": "grows from 1 to 3 ranks"}, {}),
        ([gang("e", 2, 1, 2), gang("f", 1, 1, 2)], 4, {}, {"f": "grows from 1 to 2 ranks"}, {}),
        ([gang("e", 1, 1, 2), gang("r", 1)], 2, {}, {}, {}),
        ([gang("r", 1)], 2, {}, {}, {}),
        ([gang("e", 1, 1, 2, ran=4.9)], 2, {}, {}, {}),
        ([gang("e", 1, 1, 2, done=0.95)], 2, {}, {}, {}),
        ([gang("e", 1, 1, 2), gang("f", 1, 1, 2, resizing=True)], 4, {}, {}, {}),
        ([gang("e", 1, 1, 2, resizing=True)], 4, {}, {}, {}),
        ([gang("e", 1, 1, 2, leaving=True)], 4, {}, {}, {}),
        ([waiting("x", 4), gang("e", 1, 1, 2)], 4, {}, {}, {"x": "needs 4 slots at once, 3 of 4 are free; runs next"}),
    ],
)  # fmt: skip
def test_elastic_gangs_give_and_take(
    jobs: list[Job], slots: int, start: dict[str, int], resize: dict[str, str], reasons: dict[str, str]
) -> None:
    decided = decide(jobs, slots)
    assert (starts(decided), decided.resize, decided.suspend, decided.reasons) == (start, resize, {}, reasons)


def test_a_slot_must_be_free_for_a_while_before_a_gang_grows() -> None:
    assert not decide([gang("e", 1, 1, 2)], 2, idle=4.9).resize


def test_a_job_that_pauses_holds_nobody_up_but_keeps_gangs_from_growing() -> None:
    paused = waiting("p", 1)
    paused.not_before = paused.created_at
    assert starts(decide([paused, waiting("b", 2)], 2)) == {"b": 2}
    assert not decide([paused, gang("e", 1, 1, 2)], 2).resize


def test_a_stopped_group_starts_nothing_and_says_so() -> None:
    decided = decide([waiting("a"), waiting("b"), gang("e", 1, 1, 4)], 4, is_started=False)
    assert (decided.start, decided.resize, decided.runs_next) == ((), {}, "A")
    assert decided.reasons == {"a": "instance group lab is stopped"}


def test_what_no_longer_fits_the_group_holds_nobody_up() -> None:
    decided = decide([waiting("big", 8), waiting("a", 1)], 4)
    assert starts(decided) == {"a": 1}
    assert decided.reasons == {"big": "needs 8 slots at once, lab has 4"}


def test_what_went_for_a_resize_and_no_longer_fits_holds_nobody_up_either() -> None:
    decided = decide([waiting("big", 8, 4, resizing=True), waiting("a", 1)], 2)
    assert starts(decided) == {"a": 1}
    assert decided.reasons == {"big": "needs 4 slots at once, lab has 2"}


def test_who_wants_more_gpus_than_a_host_has_now_holds_nobody_up() -> None:
    jobs = [waiting("g", 1, gpus_per_rank=4), waiting("h", 1, gpus_per_rank=2)]
    decided = decide(jobs, 8, gpus=2, hosts=2)
    assert starts(decided) == {"h": 1}
    assert "lab has GPUs for 0 ranks" in decided.reasons["g"]


class TestBackfill:
    """Those behind the first that cannot start."""

    def test_what_ends_in_time_passes(self) -> None:
        running = gang("r", 3, ran=100.0, max_seconds=200.0, grace_seconds=10.0)  # ends in 110 s at the latest
        jobs = [running, waiting("b", 4), waiting("long", 1, max_seconds=101.0), waiting("short", 1, max_seconds=100.0)]
        decided = decide(jobs, 4)
        assert starts(decided) == {"short": 1}
        assert decided.start[0].is_backfill
        assert decided.runs_next == "B"

    def test_what_takes_no_slot_that_the_first_will_need_passes(self) -> None:
        running = gang("r", 5, max_seconds=100.0)
        jobs = [running, waiting("b", 7), waiting("c", 1), waiting("d", 1)]
        # When r has ended 8 are free: b leaves one, and one may be taken now.
        assert starts(decide(jobs, 8)) == {"c": 1}

    def test_nothing_rigid_passes_where_nobody_says_when_it_ends(self) -> None:
        jobs = [gang("r", 3), waiting("b", 4), waiting("c", 1, max_seconds=1.0), waiting("d", 1)]
        assert starts(decide(jobs, 4)) == {}

    def test_an_elastic_one_passes_and_gives_its_place_back(self) -> None:
        jobs = [gang("r", 2), waiting("b", 4), waiting("e", 4, 1)]
        decided = decide(jobs, 4)
        assert starts(decided) == {"e": 2}
        assert decided.start[0].is_backfill
        passed = gang("e", 2, 1, 4, backfill=True)
        blocked = waiting("b", 4, submitted=-200.0)
        passed.sequence = blocked.sequence + 1
        decided = decide([passed, blocked], 4)
        assert (decided.suspend, starts(decided)) == ({"e": "makes room for B"}, {})
        assert decided.reasons == {"b": "needs 4 slots at once, 2 of 4 are free; others make room"}
        # Not for one that came after it, and not when that would not be enough.
        late = waiting("late", 4)
        assert not decide([passed, late], 4).suspend
        assert not decide([passed, blocked, gang("r", 1)], 4).suspend

    def test_no_elastic_one_passes_who_only_waits_until_others_have_run_long_enough(self) -> None:
        young = gang("e", 1, 1, 2, backfill=True, ran=10.0)
        blocked = waiting("b", 2)
        young.sequence = blocked.sequence + 1
        # In 50 s e gives way; were f to take the other slot now, b would wait for f next, and so for ever.
        assert starts(decide([young, blocked, waiting("f", 2, 1)], 2)) == {}

    def test_a_gang_that_has_just_begun_is_not_suspended(self) -> None:
        passed = gang("e", 2, 1, 4, backfill=True, ran=59.9)
        blocked = waiting("b", 4)
        passed.sequence = blocked.sequence + 1
        assert not decide([passed, blocked], 4).suspend

    def test_who_waits_for_gpus_does_not_hold_up_who_needs_none(self) -> None:
        jobs = [gang("r", 1, gpus=[[0]], gpus_per_rank=1), waiting("b", 1, gpus_per_rank=1), waiting("c", 1)]
        assert starts(decide(jobs, 4, gpus=1)) == {"c": 1}
        # It would need the slot, too.
        assert starts(decide(jobs, 2, gpus=1)) == {}


class TestPriority:
    """The policy `priority`."""

    def test_the_more_urgent_goes_first_and_yet_age_counts(self) -> None:
        jobs = [waiting("a", 1), waiting("b", 1, priority=1), waiting("c", 1, submitted=599.0, priority=1)]
        assert list(starts(decide(jobs, 2, policy="priority"))) == ["b", "c"]
        jobs = [waiting("a", 1), waiting("c", 1, submitted=601.0, priority=1)]
        assert list(starts(decide(jobs, 1, policy="priority"))) == ["a"]

    def test_an_elastic_gang_gives_way_to_a_more_urgent_job(self) -> None:
        running = gang("e", 4, 2, 4, priority=1)
        assert decide([running, waiting("x", 3, priority=1)], 4, policy="priority").suspend == {}
        urgent = decide([running, waiting("x", 3, priority=2, submitted=100.0)], 4, policy="priority")
        assert urgent.suspend == {"e": "makes room for X"}
        # Where shrinking does, nobody is suspended.
        urgent = decide([running, waiting("x", 2, priority=2)], 4, policy="priority")
        assert (urgent.suspend, urgent.resize) == ({}, {"e": "shrinks from 4 to 2 ranks to make room for X"})

    def test_a_rigid_gang_never_gives_way(self) -> None:
        assert decide([gang("r", 4), waiting("x", 1, priority=100)], 4, policy="priority").suspend == {}

    def test_a_gang_gives_its_gpus_to_a_more_urgent_job(self) -> None:
        running = gang("e", 2, 1, 2, gpus=[[0], [1]], gpus_per_rank=1)
        urgent = waiting("x", 2, priority=2, gpus_per_rank=1)
        assert decide([running, urgent], 8, gpus=2, policy="priority").suspend == {"e": "makes room for X"}

    def test_first_come_first_served_knows_no_priority(self) -> None:
        assert list(starts(decide([waiting("a"), waiting("b", priority=100)], 1, policy="fifo"))) == ["a"]


class TestFairShare:
    """The policy `fairshare`, and quotas, which hold in all."""

    def test_users_take_turns_however_much_one_of_them_submitted(self) -> None:
        jobs = [waiting(f"a{number}") for number in range(6)] + [
            waiting(f"b{number}", owner="bob") for number in range(2)
        ]
        assert list(starts(decide(jobs, 4, policy="fairshare"))) == ["a0", "b0", "a1", "b1"]

    def test_what_one_holds_already_counts(self) -> None:
        jobs = [gang("r", 2), waiting("a"), *(waiting(f"b{number}", owner="bob") for number in range(3))]
        assert list(starts(decide(jobs, 4, policy="fairshare"))) == ["b0", "b1"]

    def test_twice_the_weight_is_twice_the_slots(self) -> None:
        jobs = [waiting(f"{user}{number}", owner=user) for number in range(9) for user in ("ann", "bob")]
        decided = starts(decide(jobs, 6, policy="fairshare", shares=[UserShare("bob", 2.0)]))
        assert sum(job_id.startswith("bob") for job_id in decided) == 4

    def test_who_has_less_gets_what_an_elastic_gang_of_others_holds(self) -> None:
        hog = gang("e", 4, 2, 4)
        small = waiting("b", 1, owner="bob")
        assert decide([hog, small], 4, policy="fairshare").resize == {
            "e": "shrinks from 4 to 3 ranks to make room for B"
        }
        assert decide([gang("e", 4, 3, 4), waiting("b", 2, owner="bob")], 4, policy="fairshare").suspend == {
            "e": "makes room for B"
        }
        # Bob would hold more than Ann then.
        assert not decide([gang("e", 4, 3, 4), waiting("b", 4, owner="bob")], 4, policy="fairshare").suspend

    def test_a_quota_stops_one_user_and_nobody_else(self) -> None:
        jobs = [waiting(f"a{number}") for number in range(3)] + [waiting("b", 4, owner="bob")]
        decided = decide(jobs, 8, policy="fifo", max_slots_per_user=2, shares=[UserShare("bob", 1.0, 4)])
        assert starts(decided) == {"a0": 1, "a1": 1, "b": 4}
        assert decided.reasons == {"a2": "needs 1 slot, ann holds 2 of 2 allowed"}

    def test_an_elastic_job_takes_no_more_than_the_quota(self) -> None:
        assert starts(decide([waiting("e", 8, 1)], 8, max_slots_per_user=3)) == {"e": 3}
        assert decide([gang("e", 1, 1, 8)], 8, max_slots_per_user=3).resize == {"e": "grows from 1 to 3 ranks"}
        assert not decide([gang("e", 3, 1, 8)], 8, max_slots_per_user=3).resize

    def test_a_job_beyond_the_whole_quota_does_not_hold_up_its_owners_others(self) -> None:
        decided = decide([waiting("a", 4), waiting("b", 1)], 8, max_slots_per_user=2)
        assert starts(decided) == {"b": 1}
        assert decided.reasons == {"a": "needs 4 slots at once, ann holds 0 of 2 allowed"}
