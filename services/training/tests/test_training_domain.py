"""Which move is legal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from servicekit.jobs import JobFacts
from training_fakes import make_training, make_validation
from training_service.domain import metrics
from training_service.domain.addresses import without_passwords
from training_service.domain.metrics import MetricPoint, ranges_between
from training_service.domain.runs import Status, percent
from workerkit import spool


def job(state: str, **facts: object) -> JobFacts:
    return JobFacts("j", state, **facts)  # type: ignore[arg-type]


def test_a_training_runs_and_finishes() -> None:
    training = make_training()
    assert training.follow(job("SUBMITTED", reason="waiting for 2 slots"))
    assert (training.status, training.status_message) == (Status.SUBMITTED, "waiting for 2 slots")
    assert training.follow(job("RUNNING", done=50, total=200, driver_id="d1"))
    assert (training.status, training.progress, training.driver_id) == (Status.RUNNING, 25, "d1")
    assert training.status_message == ""
    assert not training.follow(job("RUNNING", done=50, total=200, driver_id="d1"))
    training.follow(job("RUNNING", done=200, total=200))
    assert training.progress == 99
    training.follow(job("FINISHED"))
    assert (training.status, training.progress) == (Status.FINISHED, 100)


def test_a_warning_is_shown_whatever_becomes_of_the_training() -> None:
    warning = "train_loss is not finite since iteration 2"
    for facts, status, message in (
        (job("RUNNING"), Status.RUNNING, warning),
        (job("SUBMITTED", reason="restart 1 of 2"), Status.SUBMITTED, f"restart 1 of 2; {warning}"),
        (job("FINISHED"), Status.FINISHED, warning),
        (job("KILLED", reason="stopped"), Status.STOPPED, f"stopped; {warning}"),
        (job("ERROR", reason="rank 0: exit 1", log_tail="no"), Status.FAILED, f"rank 0: exit 1\n{warning}\nno"),
    ):
        training = make_training()
        assert training.follow(replace(facts, warning=warning))
        assert (training.status, training.status_message) == (status, message)


def test_progress_does_not_go_back_over_a_restart() -> None:
    training = make_training()
    training.follow(job("RUNNING", done=60, total=100))
    training.follow(job("RUNNING", done=40, total=100))
    assert training.progress == 60


@pytest.mark.parametrize(
    ("facts", "status", "message"),
    [
        (job("ERROR", reason="rank 1: exit 1", log_tail="Error: no\n"), Status.FAILED, "rank 1: exit 1\nError: no"),
        (
            job("ERROR", reason="rank 0: exit 65", refusal="no weights", log_tail="line\nno weights\n"),
            Status.FAILED,
            "no weights\nline",
        ),
        (job("ERROR", reason="exit 65", refusal="x" * 5000, log_tail="line"), Status.FAILED, "x" * 2000 + "\nline"),
        (job("ERROR", refusal="x" * 600, log_tail="line\n" + "x" * 500 + "..."), Status.FAILED, "x" * 600 + "\nline"),
        (job("KILLED", reason="stopped by alice"), Status.STOPPED, "stopped by alice"),
        (None, Status.FAILED, "the scheduling service no longer knows the job of this run"),
    ],
)
def test_other_ends(facts: JobFacts | None, status: Status, message: str) -> None:
    training = make_training()
    training.follow(facts)
    assert (training.status, training.status_message) == (status, message)


@pytest.mark.parametrize("final", ["FINISHED", "ERROR", "KILLED"])
@pytest.mark.parametrize("later", ["SUBMITTED", "RUNNING", "FINISHED", "ERROR", "KILLED"])
def test_a_final_status_never_changes(final: str, later: str) -> None:
    training = make_training()
    training.follow(job(final))
    before = training.status
    assert not training.follow(job(later, done=1, total=2))
    assert training.status is before


def test_a_validation_needs_its_result() -> None:
    validation = make_validation()
    validation.follow(job("FINISHED", result={"pairs": [{"name": "Top1", "value": "0.98"}]}))
    assert (validation.status, validation.pairs) == (Status.FINISHED, [("Top1", "0.98")])


@pytest.mark.parametrize(
    "result",
    [
        None,
        {},
        {"pairs": None},
        {"pairs": "Top1"},
        {"pairs": ["Top1"]},
        {"pairs": [{"name": "Top5", "value": "1"}]},
        {"pairs": [{"name": "Top1", "value": ""}]},
        {"pairs": [{"name": "Top1"}]},
        {"pairs": [{"name": "Top1", "value": "1" * 9_000_000}]},
    ],
)
def test_a_validation_without_a_value_of_every_metric_failed(result: object) -> None:
    without = make_validation()
    without.follow(job("FINISHED", result=result))
    assert without.status is Status.FAILED
    assert "without reporting a value of every metric" in without.status_message


def test_values_come_in_the_order_in_which_they_were_asked_for() -> None:
    validation = make_validation(metrics=["Top5", "Top1"])
    values = {"Top1": "0.5", "Top5": "0.9", "mine": "2"}
    validation.follow(job("FINISHED", result={"pairs": [{"name": k, "value": v} for k, v in values.items()]}))
    assert validation.pairs == [("Top5", "0.9"), ("Top1", "0.5")]


def test_percent() -> None:
    assert [percent(*pair) for pair in [(0, 0), (1, 3), (5, 4), (-1, 4), (29, 100), (1, 1e-320), (1e308, 1e-5)]] == [
        *(0, 33, 100, 0, 29),
        *(0, 0),
    ]
    nan, inf = float("nan"), float("inf")
    assert [percent(*pair) for pair in [(nan, 1), (1, nan), (inf, 1), (inf, inf), (1, inf)]] == [0] * 5


@pytest.mark.parametrize(("first", "last", "most"), [(1, 1000, 4), (0, 5, 5), (7, 1_000_000, 1000), (0, 2**31 - 1, 9)])
def test_ranges_cover_what_lies_between_and_leave_room_for_both_ends(first: int, last: int, most: int) -> None:
    ranges = ranges_between(first, last, most)
    assert (ranges.start, ranges.stop) == (first + 1, last)
    assert ranges[-1] + ranges.step >= last
    assert 2 * len(ranges) + 2 <= most
    # No wider than they must be.
    count = (most - 2) // 2
    assert ranges.step == 1 or (ranges.step - 1) * count < last - first - 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"series": ""}, False),
        ({"series": "x" * 129}, False),
        # No database takes them.
        ({"series": "\0"}, False),
        ({"series": "\ud800"}, False),
        ({"step": -1}, False),
        ({"step": 2**31}, False),
        ({"attempt": 0}, False),
        ({"attempt": 10**25}, False),
        ({"value": float("nan")}, False),
        ({"time": float("inf")}, False),
    ],
)
def test_what_has_a_place_on_a_curve(changes: dict[str, object], expected: bool) -> None:
    point = MetricPoint(**{"job_id": "j", "attempt": 1, "series": "loss", "step": 0, "value": 1.0, **changes})  # type: ignore[arg-type]
    assert point.is_storable is expected


def test_workers_send_what_the_service_takes() -> None:
    # Each has its own: the domain imports nothing that imports gRPC.
    assert (spool.MAX_SERIES_LENGTH, spool.MAX_STEP) == (metrics.MAX_SERIES_LENGTH, metrics.MAX_STEP)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://host/w.pth?x=1", "https://host/w.pth?x=1"),
        ("https://jo@host/w.pth", "https://jo@host/w.pth"),
        ("https://jo:pass@host:8443/w.pth?x=1#y", "https://jo:***@host:8443/w.pth?x=1#y"),
        ("http://jo:p@ss@[::1]:80/w", "http://jo:***@[::1]:80/w"),
        ("http://:pass@host/w", "http://:***@host/w"),
    ],
)
def test_passwords_of_addresses_are_not_shown(address: str, shown: str) -> None:
    assert without_passwords(address) == shown
