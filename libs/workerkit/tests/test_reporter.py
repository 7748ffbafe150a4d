"""A worker reports to servers that come and go: nothing lost, nothing doubled, the program never held up."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import workerkit
from dlmesh.scheduling.v1 import jobs_pb2, jobs_pb2_grpc
from dlmesh.training.v1 import metrics_pb2, metrics_pb2_grpc
from workerkit import Reporter
from workerkit.spool import (
    MAX_LINE_BYTES,
    MAX_REPORT_BYTES,
    MAX_SERIES,
    append_metrics,
    not_finite_series,
    read_metrics,
    read_report,
    warning_of,
)


class Platform(jobs_pb2_grpc.JobServiceServicer, metrics_pb2_grpc.MetricServiceServicer):
    """Remembers reports and how often each point came."""

    def __init__(self) -> None:
        self.points: Counter[tuple[str, int]] = Counter()
        self.reports: list[jobs_pb2.ReportJobRequest] = []
        self.headers: list[dict[str, str]] = []
        self.changed = threading.Condition()

    def ReportJob(self, request: Any, context: Any) -> jobs_pb2.ReportJobResponse:
        with self.changed:
            self.reports.append(request)
            self.headers.append(dict(context.invocation_metadata()))
            self.changed.notify_all()
        return jobs_pb2.ReportJobResponse()

    def RecordMetrics(self, request: Any, context: Any) -> metrics_pb2.RecordMetricsResponse:
        with self.changed:
            self.points.update((point.series, point.step) for point in request.points)
            self.changed.notify_all()
        return metrics_pb2.RecordMetricsResponse()


def start(platform: Platform, port: int = 0) -> tuple[grpc.Server, int]:
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    jobs_pb2_grpc.add_JobServiceServicer_to_server(platform, server)
    metrics_pb2_grpc.add_MetricServiceServicer_to_server(platform, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, bound


def environment(directory: Path, port: int) -> dict[str, str]:
    return {
        "DLMESH_JOB_ID": "j1",
        "DLMESH_JOB_DIR": str(directory),
        "DLMESH_JOB_ATTEMPT": "2",
        "DLMESH_JOB_TOKEN": "token",
        "DLMESH_SCHEDULING_ADDRESS": f"127.0.0.1:{port}",
        "DLMESH_TRAINING_ADDRESS": f"127.0.0.1:{port}",
    }


def test_nothing_is_lost_or_doubled_while_the_platform_is_away(tmp_path: Path) -> None:
    first = Platform()
    server, port = start(first)
    reporter = Reporter.from_environment(environment(tmp_path, port))
    for step in range(50):
        reporter.metrics({"loss": 1.0 / (step + 1)}, step)
    with first.changed:
        assert first.changed.wait_for(lambda: len(first.points) == 50, timeout=10)
    server.stop(None).wait()

    slowest = 0.0
    for step in range(50, 100):
        started = time.monotonic()
        reporter.metrics({"loss": 0.1}, step)
        reporter.progress(step + 1, 100, "training")
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < 1.0

    second = Platform()
    server, _ = start(second, port)
    reporter.metrics({"loss": float("nan")}, 100)
    reporter.result({"top1": 0.98})
    reporter.close()
    server.stop(None).wait()
    # A point whose acknowledgement was lost may be sent again; the receiving table is keyed.
    assert {step for _, step in first.points | second.points} == set(range(100))
    assert all(count == 1 for count in second.points.values())
    last = second.reports[-1]
    assert (last.job_id, last.attempt, last.progress.done) == ("j1", 2, 100)
    assert json.loads(last.result_json) == {"top1": 0.98}
    assert last.warning == "loss is not finite since iteration 100"
    assert list(last.not_finite.names) == ["loss"]
    assert second.headers[-1]["x-dlmesh-job-token"] == "token"


def test_the_spool_alone_tells_everything(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path)
    reporter.progress(1, 3)
    reporter.metrics({"loss": 0.5, "lr": float("nan")}, 7)
    reporter.progress(2, 3, "training")
    reporter.result({"a": 1})
    reporter.close()
    assert read_report(tmp_path) == {
        "progress": {"done": 2.0, "total": 3.0, "phase": "training"},
        "result": {"a": 1},
        "not_finite": {"series": "lr", "step": 7, "lasts": True},
        "not_finite_since": {"lr": 7},
    }
    points, _ = read_metrics(tmp_path, 0)
    assert [(point.series, point.step, point.value) for point in points] == [("loss", 7, 0.5)]


NAN, INFINITE = float("nan"), float("inf")


def test_the_report_names_the_first_value_that_is_no_number(tmp_path: Path) -> None:
    with Reporter(tmp_path) as reporter:
        reporter.metrics({"train_loss": 0.5, "lr": 0.1}, 1)
        assert warning_of(read_report(tmp_path)) == ""
        reporter.metrics({"lr": 0.1, "train_loss": INFINITE, "train_accuracy": NAN}, 2)
        # At once, while the program goes on.
        assert warning_of(read_report(tmp_path)) == "train_loss is not finite since iteration 2"
        reporter.metrics({"train_loss": NAN}, 3)
        reporter.progress(3, 3)
    assert warning_of(read_report(tmp_path)) == "train_loss is not finite since iteration 2"


def test_a_value_that_comes_back_is_no_lasting_trouble(tmp_path: Path) -> None:
    with Reporter(tmp_path) as reporter:
        for step, value in enumerate((NAN, 0.5, 0.4)):
            reporter.metrics({"loss": value}, step)
    assert warning_of(read_report(tmp_path)) == "loss was not finite at iteration 0"
    with Reporter(tmp_path) as reporter:
        for step, value in enumerate((0.5, NAN, 0.3, NAN)):
            reporter.metrics({"loss": value}, step)
    assert warning_of(read_report(tmp_path)) == "loss is not finite since iteration 3"


def test_of_every_series_it_is_known_whether_its_newest_value_is_a_number(tmp_path: Path) -> None:
    with Reporter(tmp_path) as reporter:
        reporter.metrics({"loss": 0.5}, 1)
        assert not_finite_series(read_report(tmp_path)) is None
        reporter.metrics({"grad_norm": INFINITE, "loss": 0.5}, 2)
        assert not_finite_series(read_report(tmp_path)) == ["grad_norm"]
        # Each at once, though the warning stays that of the first.
        reporter.metrics({"loss": NAN}, 3)
        assert not_finite_series(read_report(tmp_path)) == ["grad_norm", "loss"]
        reporter.metrics({"other": 1.0}, 4)
        reporter.metrics({"grad_norm": 1.0, "loss": NAN}, 5)
    report = read_report(tmp_path)
    assert (report["not_finite_since"], warning_of(report)) == ({"loss": 3}, "loss is not finite since iteration 3")
    with Reporter(tmp_path) as reporter:
        reporter.metrics({"loss": NAN}, 6)
        reporter.metrics({"loss": 0.25}, 7)
    assert not_finite_series(read_report(tmp_path)) == []


def test_a_program_has_no_more_odd_series_than_others(tmp_path: Path) -> None:
    with Reporter(tmp_path) as reporter:
        reporter.metrics({f"s{number}": NAN for number in range(MAX_SERIES + 1)} | {"x" * 129: NAN, "": NAN}, 1)
    assert not_finite_series(read_report(tmp_path)) == [f"s{number}" for number in range(MAX_SERIES)]


@pytest.mark.parametrize(
    ("begins_at", "warning"),
    [(6, "loss is not finite since iteration 5"), (5, ""), (2, "")],
    ids=["behind it", "at it", "before it"],
)
def test_the_next_attempt_takes_over_what_it_does_not_repeat(tmp_path: Path, begins_at: int, warning: str) -> None:
    odd = ["loss"] if warning else []
    attempts = [tmp_path / f"attempt-{number}" for number in range(1, 6)]
    for attempt in attempts:
        attempt.mkdir()
    with Reporter(attempts[0]) as reporter:
        reporter.metrics({"loss": 0.5}, 4)
        reporter.metrics({"loss": NAN}, 5)
    # The second one died before it reported anything.
    with Reporter(attempts[1]) as reporter:
        reporter.progress(0, 10)
    with Reporter(attempts[2]) as reporter:
        assert warning_of(read_report(attempts[2])) == ""
        reporter.metrics({"other": 1.0}, begins_at)
    assert warning_of(read_report(attempts[2])) == warning
    assert list(not_finite_series(read_report(attempts[2])) or []) == odd
    with Reporter(attempts[3]) as reporter:
        reporter.metrics({"other": 1.0}, begins_at + 1)
    assert warning_of(read_report(attempts[3])) == warning
    assert list(not_finite_series(read_report(attempts[3])) or []) == odd
    with Reporter(attempts[4]) as reporter:
        reporter.metrics({"loss": 1.0}, begins_at + 2)
    assert not not_finite_series(read_report(attempts[4]))


def test_a_torn_line_waits_for_its_end(tmp_path: Path) -> None:
    append_metrics(tmp_path, {"loss": 1.0}, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "ti')
    points, offset = read_metrics(tmp_path, 0)
    assert [point.step for point in points] == [1]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('me": 1, "values": {"loss": 2}}\n')
    points, _ = read_metrics(tmp_path, offset)
    assert [point.step for point in points] == [2]


@pytest.mark.parametrize("environ", [{}, {"DLMESH_JOB_ID": "j", "DLMESH_JOB_DIR": "/nowhere", "RANK": "1"}])
def test_outside_of_a_job_and_on_other_ranks_nothing_happens(environ: dict[str, str]) -> None:
    with Reporter.from_environment(environ) as reporter:
        reporter.progress(1, 2)
        reporter.metrics({"loss": 1}, 1)
        reporter.result({})


def test_a_full_disk_does_not_stop_the_program(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path / "missing")
    reporter.progress(1, 2)
    reporter.metrics({"loss": 1}, 1)
    reporter.close()


@pytest.mark.parametrize(
    ("text", "report"),
    [
        ("", {}),
        ("[1]", {}),
        ("[" * 100_000, {}),
        ("\udcff", {}),
        ('{"result": 1, "more": 2}', {"result": 1}),
        ('{"progress": 3, "result": {}}', {"result": {}}),
        ('{"progress": {"done": 1.0, "total": 2.0}}', {}),
        ('{"progress": {"done": "1", "total": 2.0, "phase": ""}}', {}),
        ('{"progress": {"done": 1.0, "total": 2.0, "phase": []}}', {}),
        ('{"not_finite": "loss"}', {}),
        ('{"not_finite": {"series": "loss", "step": 1e300, "lasts": true}}', {}),
        ('{"not_finite": {"series": "", "step": 1, "lasts": true}}', {}),
        (r'{"not_finite": {"series": "\ud800", "step": 1, "lasts": true}}', {}),
        ('{"not_finite_since": ["loss"]}', {}),
        (
            r'{"not_finite_since": {"a": 1, "": 1, "\ud800": 1, "\u0000": 1, "b": 1.0, "c": true, "d": -1, "e": 1e99}}',
            {"not_finite_since": {"a": 1}},
        ),
        ('{"result": "' + "x" * MAX_REPORT_BYTES + '"}', {}),
    ],
)
def test_a_report_of_another_hand_cannot_do_harm(tmp_path: Path, text: str, report: object) -> None:
    (tmp_path / "report.json").write_text(text, errors="surrogateescape")
    assert read_report(tmp_path) == report
    (tmp_path / "report.json").unlink()
    (tmp_path / "report.json").mkdir()
    assert read_report(tmp_path) == {}


def test_metrics_of_another_hand_cannot_do_harm(tmp_path: Path) -> None:
    append_metrics(tmp_path, {"loss": 0.5}, 1)
    bad = ["[]", "{}", "null", '{"step": 1, "time": 0, "values": [1]}', '{"step": [], "time": 0, "values": {"a": 1}}']
    bad += ['{"step": 1e999, "time": 0, "values": {"a": 1}}', "[" * 10_000, "\udcff"]
    # What the platform would refuse must not keep it from taking the rest.
    bad += [json.dumps({"step": step, "time": 0, "values": {"a": 1}}) for step in (-1, 2**31, 2**70)]
    bad += [json.dumps({"step": 1, "time": 0, "values": {name: 1}}) for name in ("", "x" * 129, "\0", "\ud800")]
    with (tmp_path / "metrics.jsonl").open("a", errors="surrogateescape") as file:
        file.write("\n".join(bad) + "\n")
    append_metrics(tmp_path, {"loss": 0.25}, 2)
    points, offset = read_metrics(tmp_path, 0)
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.25)]
    assert offset == (tmp_path / "metrics.jsonl").stat().st_size
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("x" * (MAX_LINE_BYTES + 1) + "\n")
    assert read_metrics(tmp_path, offset) == ([], offset)


@pytest.mark.parametrize("name", ["report.json", "metrics.jsonl"])
def test_pipes_and_links_are_not_opened(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert (read_report(tmp_path), read_metrics(tmp_path, 0)) == ({}, ([], 0))
    (tmp_path / name).unlink()
    (tmp_path / "other").write_text('{"result": 1}\n')
    (tmp_path / name).symlink_to("other")
    assert (read_report(tmp_path), read_metrics(tmp_path, 0)) == ({}, ([], 0))


def test_reading_data_is_a_heartbeat_of_a_lone_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["workerkit.heartbeat"]
    monkeypatch.setattr(module, "_next_beat", 0.0)
    monkeypatch.setenv("DLMESH_JOB_DIR", str(tmp_path))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    module.heartbeat_of_the_only_rank()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("WORLD_SIZE", "1")
    module.heartbeat_of_the_only_rank()
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat-0"]


def test_a_heartbeat_is_the_programs_own_and_one_of_each_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLMESH_JOB_DIR", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    beats = tmp_path / "heartbeat-1"
    for act in (
        workerkit.heartbeat,
        lambda: Reporter(None).progress(1, 2),
        lambda: Reporter(None).metrics({"loss": 1}, 1),
    ):
        monkeypatch.setattr(sys.modules["workerkit.heartbeat"], "_next_beat", 0.0)
        act()
        assert beats.exists()
        os.utime(beats, (1, 1))
        act()
        # Not more often than once a second.
        assert beats.stat().st_mtime == 1
        beats.unlink()


def test_a_heartbeat_outside_of_a_job_and_on_a_full_disk_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["workerkit.heartbeat"]
    monkeypatch.setattr(module, "_next_beat", 0.0)
    monkeypatch.delenv("DLMESH_JOB_DIR", raising=False)
    workerkit.heartbeat()
    monkeypatch.setattr(module, "_next_beat", 0.0)
    monkeypatch.setenv("DLMESH_JOB_DIR", str(tmp_path / "missing"))
    workerkit.heartbeat()
    assert list(tmp_path.iterdir()) == []
