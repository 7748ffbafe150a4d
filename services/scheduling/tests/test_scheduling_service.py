"""The whole service in this process with the real engine: submit, settle, stop, restart, reports, lists."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.scheduling.v1 import jobs_pb2
from scheduling_room import DEADLINE_SECONDS, JobStub, service, spec, submit, until
from servicekit.identity import job_token
from testkit.services import ADMIN, SECRET, acting_as, collect


async def reason_of(platform: Any, job_id: str) -> str:
    """Why a job waits, once the queue has said so."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not (job := await until(platform, job_id, "SUBMITTED")).reason:
            await asyncio.sleep(0.02)
    return job.reason


async def test_jobs_end_as_their_programs_do(tmp_path: Path, database_url: str) -> None:
    async with service(tmp_path, database_url) as platform:
        await submit(platform, "good", spec(tmp_path, "print('made it')", ranks=2))
        await submit(platform, "bad", spec(tmp_path, "raise SystemExit('no such layer: conv9')"))
        good = await until(platform, "good", "FINISHED", "ERROR")
        assert (good.state, [rank.exit_code for rank in good.ranks]) == ("FINISHED", [0, 0])
        bad = await until(platform, "bad", "FINISHED", "ERROR")
        assert (bad.state, bad.reason) == ("ERROR", "rank 0 exited with code 1")
        assert bad.log_tail == "no such layer: conv9"
        log = platform.jobs.ReadJobLog(jobs_pb2.ReadJobLogRequest(job_id="good", stream="stdout", rank=1))
        assert b"".join([piece.data for piece in await collect(log)]) == b"made it\n"
        await platform.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(job_id="good"))
        assert not (tmp_path / "jobs" / "good").exists()
        assert not (await platform.jobs.GetJobs(jobs_pb2.GetJobsRequest(job_ids=["good"]))).jobs


async def test_a_program_that_replaces_its_files_with_pipes_holds_up_nobody(tmp_path: Path) -> None:
    program = """
import os, pathlib, sys
folder = pathlib.Path(os.environ["DLMESH_JOB_DIR"])
for name in ("rank-0.err", "rank-0.out", "report.json", "metrics.jsonl"):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
sys.exit(3)
"""
    async with service(tmp_path) as platform:
        await submit(platform, "pipes", spec(tmp_path, program))
        await submit(platform, "good", spec(tmp_path, "print('made it')"))
        bad = await until(platform, "pipes", "FINISHED", "ERROR")
        assert (bad.state, bad.reason, bad.log_tail) == ("ERROR", "rank 0 exited with code 3", "")
        log = platform.jobs.ReadJobLog(jobs_pb2.ReadJobLogRequest(job_id="pipes", stream="stdout", tail_lines=5))
        with pytest.raises(grpc.aio.AioRpcError, match="log"):
            await collect(log)
        await until(platform, "good", "FINISHED")
        log = platform.jobs.ReadJobLog(jobs_pb2.ReadJobLogRequest(job_id="good", stream="stdout", tail_lines=1))
        assert b"".join([piece.data for piece in await collect(log)]) == b"made it\n"


def _report(text: str) -> str:
    """A program that writes its report by itself."""
    return f"pathlib.Path(os.environ['DLMESH_JOB_DIR'], 'report.json').write_text({text!r})"


@pytest.mark.parametrize(
    ("program", "state", "says"),
    [
        ("sys.stderr.write('a\\0b'); sys.exit(3)", "ERROR", "a\ufffdb"),
        (
            _report(r'{"progress": {"done": 1.0, "total": 2.0, "phase": "\ud800\u0000"}, "result": "\ud800"}'),
            "FINISHED",
            "",
        ),
        (
            _report(r'{"progress": {"done": NaN, "total": 1e999, "phase": ""}, "result": [NaN, "\u0000"]}'),
            "FINISHED",
            "",
        ),
    ],
)
async def test_what_no_database_takes_ends_all_the_same(
    tmp_path: Path, database_url: str, program: str, state: str, says: str
) -> None:
    async with service(tmp_path, database_url) as platform:
        await submit(platform, "odd", spec(tmp_path, f"import os, pathlib, sys; {program}"))
        odd = await until(platform, "odd", "FINISHED", "ERROR")
        assert (odd.state, odd.log_tail) == (state, says)


async def test_submitting_again_is_the_same_job(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        wanted = spec(tmp_path, "open('runs', 'a').write('x')")
        await asyncio.gather(*(submit(platform, "j1", wanted) for _ in range(5)))
        await until(platform, "j1", "FINISHED")
        await submit(platform, "j1", wanted)
        await until(platform, "j1", "FINISHED")
        assert (tmp_path / "data" / "runs").read_text() == "x"


async def test_what_can_never_run_is_refused_with_the_limit(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        for wanted, says in (
            (spec(tmp_path, "", ranks=3), "1 to 2"),
            (spec(tmp_path, "", application_name="\N{SNOWMAN}" * 1000), "application_name.*2000 bytes"),
            (spec(tmp_path, "", model="a\0b"), "model"),
            (spec(tmp_path, "", instance_group="moon"), "local"),
            (jobs_pb2.JobSpec(ranks=1), "command"),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=says) as caught:
                await submit(platform, "j1", wanted)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_full_queue_says_why_and_a_stop_ends_waiting_and_running_jobs(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        await submit(platform, "first", spec(tmp_path, "import time; time.sleep(600)", name="first"))
        await until(platform, "first", "RUNNING")
        await submit(platform, "gang", spec(tmp_path, "pass", ranks=2, name="gang"))
        await submit(platform, "last", spec(tmp_path, "pass", name="last"))
        assert await reason_of(platform, "gang") == "needs 2 slots at once, 1 of 2 are free; runs next"
        assert await reason_of(platform, "last") == "behind gang, which runs next"
        await platform.jobs.StopJob(jobs_pb2.StopJobRequest(job_id="gang"))
        assert (await until(platform, "gang", "KILLED")).attempt == 0
        await until(platform, "last", "FINISHED")
        await platform.jobs.StopJob(jobs_pb2.StopJobRequest(job_id="first"))
        stopped = await until(platform, "first", "KILLED")
        await platform.jobs.StopJob(jobs_pb2.StopJobRequest(job_id="first"))
        assert (await until(platform, "first", "KILLED")).ended_at == stopped.ended_at


async def test_a_restarted_service_adopts_what_runs_and_settles_what_ended_meanwhile(tmp_path: Path) -> None:
    report = (
        "import json, os; open(os.environ['DLMESH_JOB_DIR'] + '/report.json', 'w').write('{\"result\": {\"top1\": 1}}')"
    )
    async with service(tmp_path) as platform:
        await submit(platform, "runs", spec(tmp_path, "import time; open('up', 'w'); time.sleep(600)"))
        await submit(platform, "ends", spec(tmp_path, f"import time; open('up2', 'w'); time.sleep(0.3); {report}"))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not (tmp_path / "data" / "up").exists() or not (tmp_path / "data" / "up2").exists():
                await asyncio.sleep(0.02)
    outcome = tmp_path / "jobs" / "ends" / "keeper-attempt-1" / "outcome.json"
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not outcome.exists():
            await asyncio.sleep(0.02)
    async with service(tmp_path) as platform:
        ended = await until(platform, "ends", "FINISHED", "ERROR")
        assert (ended.state, ended.attempt, ended.result_json) == ("FINISHED", 1, '{"top1": 1}')
        assert (await until(platform, "runs", "RUNNING")).attempt == 1
        await platform.jobs.StopJob(jobs_pb2.StopJobRequest(job_id="runs"))
        await until(platform, "runs", "KILLED")


async def test_a_lost_gang_is_started_again_without_counting_as_a_failure(tmp_path: Path) -> None:
    program = "import os, time\nif os.environ['DLMESH_JOB_ATTEMPT'] == '1': open('up', 'w'); time.sleep(600)"
    async with service(tmp_path) as platform:
        await submit(platform, "j1", spec(tmp_path, program))
        keeper = tmp_path / "jobs" / "j1" / "keeper-attempt-1" / "keeper.json"
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not (tmp_path / "data" / "up").exists():
                await asyncio.sleep(0.02)
        import json

        os.kill(json.loads(keeper.read_text())["pid"], signal.SIGKILL)
        job = await until(platform, "j1", "FINISHED", "ERROR")
        assert (job.state, job.attempt) == ("FINISHED", 2)


async def test_a_result_of_a_failed_attempt_is_not_taken_for_the_next_ones(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "if os.environ['DLMESH_JOB_ATTEMPT'] == '1':\n"
        "    open(os.environ['DLMESH_JOB_DIR'] + '/report.json', 'w').write('{\"result\": 1}'); sys.exit(3)\n"
    )
    async with service(tmp_path) as platform:
        await submit(platform, "j1", spec(tmp_path, program, max_restarts=1))
        job = await until(platform, "j1", "FINISHED", "ERROR")
        assert (job.state, job.attempt, job.result_json) == ("FINISHED", 2, "")


async def test_a_program_that_refuses_its_input_is_not_tried_again(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        await submit(platform, "j1", spec(tmp_path, "import os, sys; sys.exit(os.EX_DATAERR)", max_restarts=2))
        job = await until(platform, "j1", "FINISHED", "ERROR")
        assert (job.state, job.attempt, job.reason) == ("ERROR", 1, "rank 0 exited with code 65")


# Says with how many ranks it runs, goes on until told to finish, and ends with 143 when it is to make place.
ELASTIC = """
import os, signal, sys, time
rank, size, attempt = (os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'DLMESH_JOB_ATTEMPT'))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
open(f'up-{attempt}-{rank}', 'w').write(size + ' of ' + os.environ['DLMESH_MAX_WORKERS'])
while not os.path.exists('finish'):
    time.sleep(0.02)
"""
STUBBORN = ELASTIC.replace("lambda *_: sys.exit(143)", "signal.SIG_IGN")


async def text_of(path: Path) -> str:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not path.exists() or not path.read_text():
            await asyncio.sleep(0.02)
    return path.read_text()


async def running_with(platform: Any, job_id: str, ranks: int) -> jobs_pb2.Job:
    """Once it runs with so many ranks, all of which have said so."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (job := await until(platform, job_id, "RUNNING", "FINISHED", "ERROR")).current_ranks != ranks:
            assert job.state == "RUNNING", job.reason
            await asyncio.sleep(0.02)
    directory = Path(job.spec.working_directory)
    for rank in range(ranks):
        assert await text_of(directory / f"up-{job.attempt}-{rank}") == f"{ranks} of {job.spec.ranks}"
    return job


async def test_an_elastic_job_shrinks_for_others_and_grows_back(tmp_path: Path, database_url: str) -> None:
    async with service(tmp_path, database_url) as platform:
        await submit(platform, "e", spec(tmp_path, ELASTIC, ranks=2, min_ranks=1, name="E"))
        assert (await running_with(platform, "e", 2)).attempt == 1
        wait = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)"
        await submit(platform, "x", spec(tmp_path, wait, name="X"))
        small = await running_with(platform, "e", 1)
        assert (small.attempt, small.reason) == (2, "went on with 1 instead of 2 ranks")
        await until(platform, "x", "RUNNING")
        (tmp_path / "data" / "go").touch()
        await until(platform, "x", "FINISHED")
        big = await running_with(platform, "e", 2)
        assert (big.attempt, big.reason) == (3, "went on with 2 instead of 1 ranks")
        (tmp_path / "data" / "finish").touch()
        job = await until(platform, "e", "FINISHED", "ERROR")
        assert (job.state, job.attempt, job.current_ranks) == ("FINISHED", 3, 2)


async def test_a_gang_that_will_not_go_is_killed_and_only_resumed(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        # Not one restart is allowed: neither the kill nor the resize may count as a failure.
        stubborn = spec(tmp_path, STUBBORN, ranks=2, min_ranks=1, grace_seconds=0.2, max_restarts=0)
        await submit(platform, "e", stubborn)
        await running_with(platform, "e", 2)
        await submit(platform, "x", spec(tmp_path, "pass"))
        await until(platform, "x", "FINISHED")
        await running_with(platform, "e", 2)
        (tmp_path / "data" / "finish").touch()
        assert (await until(platform, "e", "FINISHED", "ERROR")).state == "FINISHED"


async def test_a_program_that_ends_well_while_it_is_resized_has_finished(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        done = ELASTIC.replace("sys.exit(143)", "sys.exit(0)")
        await submit(platform, "e", spec(tmp_path, done, ranks=2, min_ranks=1))
        await running_with(platform, "e", 2)
        await submit(platform, "x", spec(tmp_path, "pass"))
        job = await until(platform, "e", "FINISHED", "ERROR")
        assert (job.state, job.attempt) == ("FINISHED", 1)


async def test_a_stop_wins_over_a_resize(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        await submit(platform, "e", spec(tmp_path, STUBBORN, ranks=2, min_ranks=1, grace_seconds=0.5, name="E"))
        await running_with(platform, "e", 2)
        await submit(platform, "x", spec(tmp_path, "pass", name="X"))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not (job := await until(platform, "e", "RUNNING")).reason:
                await asyncio.sleep(0.02)
        assert job.reason == "shrinks from 2 to 1 rank to make room for X"
        await platform.jobs.StopJob(jobs_pb2.StopJobRequest(job_id="e"))
        job = await until(platform, "e", "KILLED", "FINISHED", "ERROR")
        assert (job.state, job.attempt, job.reason) == ("KILLED", 1, "stopped")
        await until(platform, "x", "FINISHED")


async def test_a_silent_job_is_restarted_and_one_that_fills_the_disk_is_not(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        silent = spec(tmp_path, "import time; time.sleep(600)", max_silent_seconds=0.2, max_restarts=1)
        await submit(platform, "silent", silent)
        full = "import os, time; open('large', 'wb').write(os.urandom(2_200_000)); time.sleep(600)"
        await submit(platform, "full", spec(tmp_path, full, max_disk_bytes=1 << 20, max_restarts=1))
        job = await until(platform, "silent", "FINISHED", "ERROR")
        assert (job.state, job.attempt, job.reason) == (
            "ERROR",
            2,
            "rank 0 gave no sign of life for 0.2 s; no restart is left of 1",
        )
        job = await until(platform, "full", "FINISHED", "ERROR")
        assert (job.state, job.attempt) == ("ERROR", 1)
        assert job.reason == "the run's folder holds 2.1 MiB, allowed are 1 MiB"


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("min_ranks", 2, "0 to 1"),
        ("min_ranks", -1, "0 to 1"),
        ("max_silent_seconds", float("nan"), "0 to 315360000"),
        ("max_disk_bytes", -1, "0 or more"),
        ("gpu_percentage", 101, "0 to 100"),
        ("gpus_per_rank", -1, "0 or more"),
    ],
)
async def test_senseless_limits_are_refused(tmp_path: Path, field: str, value: float, allowed: str) -> None:
    async with service(tmp_path) as platform:
        with pytest.raises(grpc.aio.AioRpcError, match=f"{field}.*{allowed}") as caught:
            await submit(platform, "j1", spec(tmp_path, "", **{field: value}))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_elastic_job_may_want_more_than_there_is(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        await submit(platform, "e", spec(tmp_path, ELASTIC, ranks=8, min_ranks=1))
        await running_with(platform, "e", 2)
        (tmp_path / "data" / "finish").touch()
        await until(platform, "e", "FINISHED")


async def test_ranks_share_a_gpu_and_keep_it_over_a_restart_of_the_service(tmp_path: Path) -> None:
    program = (
        "import os, time\nname = 'seen-' + os.environ['RANK']\n"
        "open(name, 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "while not os.path.exists('finish'): time.sleep(0.02)"
    )
    async with service(tmp_path, slots=4, gpus=2) as platform:
        await submit(platform, "halves", spec(tmp_path, program, ranks=2, gpu_percentage=50))
        assert [await text_of(tmp_path / "data" / f"seen-{rank}") for rank in range(2)] == ["0", "0"]
    async with service(tmp_path, slots=4, gpus=2) as platform:
        other = tmp_path / "data" / "other"
        other.mkdir()
        await submit(platform, "whole", spec(tmp_path, program, gpus_per_rank=1, working_directory=str(other)))
        assert await text_of(other / "seen-0") == "1"
        await submit(platform, "late", spec(tmp_path, "pass", gpu_percentage=10))
        assert (
            await reason_of(platform, "late") == "needs 10 % of a GPU for each of 1 rank, free are 0 %, 0 %; runs next"
        )
        with pytest.raises(grpc.aio.AioRpcError, match="2 GPUs of instance group 'local': 2 such ranks"):
            await submit(platform, "never", spec(tmp_path, program, ranks=3, gpus_per_rank=1))
        (tmp_path / "data" / "finish").touch()
        await until(platform, "late", "FINISHED")
        (other / "finish").touch()
        await until(platform, "whole", "FINISHED")


async def test_a_job_for_a_gpu_runs_on_slots_where_there_is_none(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        program = "import os, sys; sys.exit(os.environ['CUDA_VISIBLE_DEVICES'] != '')"
        await submit(platform, "j1", spec(tmp_path, program, gpu_percentage=50))
        await until(platform, "j1", "FINISHED")
        log = platform.jobs.ReadJobLog(jobs_pb2.ReadJobLogRequest(job_id="j1", stream="stderr"))
        text = b"".join([piece.data for piece in await collect(log)])
        assert text == b"warning: no GPU in this group, runs on CPU slots\n"


async def test_a_job_that_asks_for_no_gpu_sees_none_of_those_there_are(tmp_path: Path) -> None:
    async with service(tmp_path, gpus=2) as platform:
        program = "import os, sys; sys.exit(os.environ['CUDA_VISIBLE_DEVICES'] != '')"
        await submit(platform, "j1", spec(tmp_path, program))
        job = await until(platform, "j1", "FINISHED", "ERROR")
        assert (job.state, job.reason) == ("FINISHED", "")


async def test_a_job_whose_row_is_damaged_hides_no_other(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        for name in ("j1", "j2"):
            await submit(platform, name, spec(tmp_path, ""))
            await until(platform, name, "FINISHED")
        with closing(sqlite3.connect(tmp_path / "db" / "scheduling.sqlite")) as database:
            database.execute(
                "UPDATE jobs SET ranks = ? WHERE id = 'j1'", ('[{"rank": 0, "pid": "y", "exit_code": 0}]',)
            )
            database.commit()
        found = (await platform.jobs.GetJobs(jobs_pb2.GetJobsRequest(job_ids=["j1", "j2"]))).jobs
        seen = {job.id: (job.state, "damaged" in job.reason, len(job.ranks)) for job in found}
        assert seen == {"j1": ("FINISHED", True, 0), "j2": ("FINISHED", False, 1)}


@pytest.mark.gpu
async def test_two_ranks_compute_on_one_real_gpu(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    program = (
        "import os, torch\nassert torch.cuda.device_count() == 1\n"
        "device = torch.device('cuda', int(os.environ['LOCAL_RANK']))\n"
        "total = torch.ones(8, device=device).sum().item()\n"
        "open('sum-' + os.environ['RANK'], 'w').write(str(total))"
    )
    async with service(tmp_path, gpus=torch.cuda.device_count()) as platform:
        await submit(platform, "j1", spec(tmp_path, program, ranks=2, gpu_percentage=50))
        job = await until(platform, "j1", "FINISHED", "ERROR")
        assert job.state == "FINISHED", job.log_tail
    assert [(tmp_path / "data" / f"sum-{rank}").read_text() for rank in range(2)] == ["8.0", "8.0"]


async def test_workers_report_for_their_own_job_and_attempt_only(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        await submit(platform, "j1", spec(tmp_path, "import time; time.sleep(600)"))
        await until(platform, "j1", "RUNNING")

        async def report(job_id: str, attempt: int, token: str) -> None:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{platform.port}") as channel:
                await JobStub(channel).ReportJob(
                    jobs_pb2.ReportJobRequest(
                        job_id=job_id,
                        attempt=attempt,
                        progress=jobs_pb2.Progress(done=3, total=10, phase="training"),
                        warning="loss is no number\0",
                        not_finite=jobs_pb2.SeriesNames(names=["loss", "x\0" * 100]),
                    ),
                    metadata=(("x-dlmesh-job", "j1"), ("x-dlmesh-job-token", token)),
                )

        await report("j1", 9, job_token(SECRET, "j1"))
        ignored = await until(platform, "j1", "RUNNING")
        assert (ignored.progress.total, ignored.warning, list(ignored.not_finite_series)) == (0, "", [])
        await report("j1", 1, job_token(SECRET, "j1"))
        job = await until(platform, "j1", "RUNNING")
        assert (job.progress.done, job.warning) == (3, "loss is no number\ufffd")
        assert list(job.not_finite_series) == ["loss", "x\ufffd" * 64]
        with pytest.raises(grpc.aio.AioRpcError) as foreign:
            await report("j2", 1, job_token(SECRET, "j1"))
        assert foreign.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError) as forged:
            await report("j1", 1, "made up")
        assert forged.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with acting_as(ADMIN), pytest.raises(grpc.aio.AioRpcError) as person:
            await platform.jobs.GetJobs(jobs_pb2.GetJobsRequest(job_ids=["j1"]))
        assert person.value.code() is grpc.StatusCode.PERMISSION_DENIED
        await platform.jobs.StopJob(jobs_pb2.StopJobRequest(job_id="j1"))
        await until(platform, "j1", "KILLED")


async def test_a_warning_lasts_over_a_restart_of_the_service_and_belongs_to_its_attempt(tmp_path: Path) -> None:
    # Nobody pushes: what the worker spooled is read when its attempt ends.
    program = """if True:
        import os, sys
        from pathlib import Path
        from workerkit import Reporter
        directory = Path(os.environ["DLMESH_JOB_DIR"])
        last = directory.name == "attempt-2"
        with Reporter(directory) as reporter:
            reporter.metrics({"loss": 1.0 if last else float("nan"), "accuracy": float("nan"), "grad": float("inf")}, 3)
        sys.exit(0 if last else 1)
    """
    async with service(tmp_path) as platform:
        await submit(platform, "j1", spec(tmp_path, program, max_restarts=1))
        await until(platform, "j1", "FINISHED")
    async with service(tmp_path) as platform:
        job = await until(platform, "j1", "FINISHED")
    assert (job.attempt, job.warning) == (2, "accuracy is not finite since iteration 3")
    assert list(job.not_finite_series) == ["accuracy", "grad"]


async def test_ranks_see_no_secrets_of_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLMESH_ADMIN_PASSWORD", "hunter2")
    monkeypatch.setenv("DLMESH_DATABASE_URL", "postgresql://u:p@h/d")
    monkeypatch.setenv("PGPASSWORD", "swordfish")
    async with service(tmp_path) as platform:
        await submit(platform, "j1", spec(tmp_path, "import os; open('seen', 'w').write(repr(dict(os.environ)))"))
        await until(platform, "j1", "FINISHED")
    seen = (tmp_path / "data" / "seen").read_text()
    assert "DLMESH_JOB_TOKEN" in seen
    assert "hunter2" not in seen
    assert "swordfish" not in seen
    assert "postgresql://" not in seen
    assert SECRET not in seen
