"""Trials through the whole service in this process, with the real engine and real programs."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
import scheduling_room
from dlmesh.scheduling.v1 import jobs_pb2, scheduling_pb2, trials_pb2
from scheduling_service.storage.groups import LOCAL_ID
from scheduling_service.usecases.await_ends import AwaitEnds
from servicekit import job_client
from servicekit.errors import Code, ServiceError
from testkit.services import ALICE, BOB, acting_as, collect
from trials_room import (
    DEADLINE_SECONDS,
    START,
    UPLOAD,
    check,
    delete,
    end_of,
    left_behind,
    packed,
    results_of,
    service,
    start,
    trial,
    until_gone,
)

# Says what it was given, then waits for a file of the data folder.
STEPS = """
import json, os, pathlib, time
config = json.loads(pathlib.Path("config.json").read_text())
results = pathlib.Path(os.environ["RESULT_DIR"], "val_dict_list.json")
results.write_text(json.dumps([{"step": "1", "loss": config["lr"]}]))
print(os.environ["SUBID"], os.environ["MINE"], flush=True)
while not pathlib.Path(os.environ["DATA_DIR"], "go").exists():
    time.sleep(0.01)
results.write_text(json.dumps([{"step": "1", "loss": config["lr"]}, {"step": "2", "loss": 0.5}]))
"""


async def test_a_trial_from_its_check_to_its_deletion(tmp_path: Path, database_url: str) -> None:
    async with service(tmp_path, database_url) as platform:
        (tmp_path / UPLOAD).write_bytes(packed({"net/main.py": STEPS, "net/config.json/lies.txt": "in the way"}))
        spec = trial(
            arguments=f"{START} --model-dir net --msd-env MINE=1 --msd-env SUBID=9 --appName first",
            config_json='{"lr": 0.25}',
            environment={"SUBID": "7"},
        )
        checked = await check(platform, spec)
        assert (checked.instance_group, checked.instance_group_id) == ("local", LOCAL_ID)
        assert left_behind(tmp_path) == []
        task_id = await start(platform, spec)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not (found := await results_of(platform, task_id, uuid4().hex))[task_id].text:
                await asyncio.sleep(0.02)
        assert {name: json.loads(results.text) for name, results in found.items()} == {
            task_id: [{"step": "1", "loss": 0.25}]
        }
        assert await platform.ends.await_ends([task_id], 0.0) == set()
        (tmp_path / "data" / "go").touch()
        job = await end_of(platform, task_id)
        assert (job.state, job.spec.kind, job.spec.study, job.spec.owner) == ("FINISHED", "trial", "s1", "alice")
        assert json.loads((await results_of(platform, task_id))[task_id].text)[1] == {"step": "2", "loss": 0.5}
        await check_what_its_owner_sees(platform, task_id)
        await delete(platform, task_id, uuid4().hex)
        assert await results_of(platform, task_id) == {}
        await until_gone(tmp_path, platform, task_id)
        with pytest.raises(grpc.aio.AioRpcError, match="was deleted") as caught:
            await start(platform, spec, task_id)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert left_behind(tmp_path) == []


async def check_what_its_owner_sees(platform: Any, task_id: str) -> None:
    with acting_as(ALICE):
        assert (await platform.execs.GetExec(scheduling_pb2.GetExecRequest(id=task_id))).state == "FINISHED"
        request = scheduling_pb2.ReadExecLogRequest(id=task_id, log_type="outlog")
        assert b"".join([piece.data for piece in await collect(platform.execs.ReadExecLog(request))]) == b"7 1\n"
        assert await collect(platform.execs.ListExecs(scheduling_pb2.ListExecsRequest())) == []
        assert (await platform.execs.DeleteAllExecs(scheduling_pb2.DeleteAllExecsRequest())).value == 0
        for request in (
            scheduling_pb2.ListApplicationsRequest(sort="tunningname"),
            scheduling_pb2.ListApplicationsRequest(),
        ):
            (application,) = await collect(platform.scheduler.ListApplications(request))
            assert (application.id, application.name, application.tuning_name) == (task_id, "first", "s1")
    with acting_as(BOB), pytest.raises(grpc.aio.AioRpcError) as caught:
        await platform.execs.GetExec(scheduling_pb2.GetExecRequest(id=task_id))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arguments": f"{START} --x 'open"}, "args, character 47"),
        ({"arguments": "--exec-start Torch --model-main main.py"}, "--exec-start: 'Torch'.*PyTorch, distPyTorch"),
        ({"arguments": "--exec-start PyTorch --model-main other.py"}, "--model-main: 'other.py'.*holds main.py"),
        ({"arguments": f"{START} --cs-datastore-meta type=fs,data_path=gone"}, "data_path: 'gone'"),
        ({"arguments": "--exec-start distPyTorch --model-main main.py --numWorker 3"}, "numWorker: 3.*1 to 2"),
        ({"instance_group": "moon"}, "sigName: 'moon'.*one of local"),
        ({"arguments": f"{START} --ig moon"}, "--ig: 'moon'.*one of local"),
        ({"upload": ""}, "file: ''"),
        ({"upload": "tuning"}, "file: 'tuning'.*below tuning"),
        ({"upload": "tuning/s1"}, "file: 'tuning/s1'.*a plain file"),
        ({"upload": "tuning/s1/gone"}, "file: 'tuning/s1/gone'.*a plain file"),
        ({"upload": "tuning/s1/link"}, "file: 'tuning/s1/link'.*a plain file"),
        ({"upload": "tuning/away/passwd"}, "file: 'tuning/away/passwd'.*a plain file"),
        ({"upload": "tuning/s1/pipe"}, "file: 'tuning/s1/pipe'.*a plain file"),
        ({"upload": "tuning/s1/empty"}, "file: 'tuning/s1/empty'.*not empty"),
        ({"upload": "tuning/../secret"}, "file: 'tuning/../secret'.*below tuning"),
        ({"upload": "secret"}, "file: 'secret'.*below tuning"),
        ({"upload": "/etc/passwd"}, "file: '/etc/passwd'.*below tuning"),
        ({"upload": "tuning/\0"}, "file: .*below tuning"),
        ({"upload": "tuning/s1/up"}, "member: '../x'.*stay inside"),
        ({"upload_name": "x/.."}, "stay inside"),
        ({"owner": ""}, "owner: ''"),
        ({"owner": "a" * 129}, "owner: .*1 to 128"),
        ({"config_json": " " * (1 << 20) + " "}, "config_json: .*1048576"),
        ({"environment": {"A-B": "1"}}, "environment: 'A-B'"),
        ({"environment": {"DLMESH_JOB_TOKEN": "1"}}, "environment: 'DLMESH_JOB_TOKEN'"),
        ({"environment": {"A": "1\0"}}, "environment A"),
        ({"priority": 101}, "priority: 101"),
        ({"max_seconds": -1.0}, "maxSeconds: -1"),
        ({"study": "s\0"}, "study: 's"),
    ],
)  # fmt: skip
async def test_what_can_never_run_leaves_nothing(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    async with service(tmp_path) as platform:
        folder = (tmp_path / UPLOAD).parent
        (folder / "upload").write_text("print(1)")
        (folder / "up").write_bytes(packed({"../x": ""}))
        (folder / "empty").touch()
        (folder / "link").symlink_to("/etc/passwd")
        (tmp_path / "tuning" / "away").symlink_to("/etc")
        os.mkfifo(folder / "pipe")
        for attempt in (check, start):
            with pytest.raises(grpc.aio.AioRpcError, match=says) as caught:
                await attempt(platform, trial(**changes))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert left_behind(tmp_path) == []
        assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize("task_id", ["", "a" * 31, "A" * 32, "../" + "a" * 29, "g" * 32])
async def test_an_id_that_is_none_is_refused(tmp_path: Path, task_id: str) -> None:
    async with service(tmp_path) as platform:
        (tmp_path / UPLOAD).write_text("print(1)")
        for call in (
            platform.trials.StartTrial(trials_pb2.StartTrialRequest(task_id=task_id, spec=trial())),
            platform.trials.ReadTrialResults(trials_pb2.ReadTrialResultsRequest(task_ids=[task_id])),
            platform.trials.DeleteTrials(trials_pb2.DeleteTrialsRequest(task_ids=[task_id])),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=r"task_id: .*32 hexadecimal") as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert left_behind(tmp_path) == []


async def test_trials_are_for_services(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        with acting_as(ALICE):
            calls = (
                platform.trials.CheckTrial(trials_pb2.CheckTrialRequest(spec=trial())),
                platform.trials.StartTrial(trials_pb2.StartTrialRequest(task_id=uuid4().hex, spec=trial())),
                platform.trials.ReadTrialResults(trials_pb2.ReadTrialResultsRequest()),
                platform.trials.DeleteTrials(trials_pb2.DeleteTrialsRequest()),
                platform.jobs.AwaitEnds(jobs_pb2.AwaitEndsRequest(job_ids=["x"])),
            )
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


WRITES = {
    "link": "os.symlink('/etc/passwd', path)",
    "link on the way": "os.rename(results, results + '2'); os.symlink(results + '2', results); os.mknod(path)",
    "pipe": "os.mkfifo(path)",
    "folder": "os.mkdir(path)",
    "large": "os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 100 << 20)",
    "nothing": "pass",
    "no text": "open(path, 'wb').write(b'\\xff[1]\\x00')",
    "long": "open(path, 'w').write('[' + '1,' * 4_000_000 + '1]')",
}  # fmt: skip


async def test_what_programs_put_in_place_of_their_results(tmp_path: Path) -> None:
    async with service(tmp_path, slots=len(WRITES)) as platform:
        ids = {}
        for name, does in WRITES.items():
            head = "import os\nresults = os.environ['RESULT_DIR']\npath = results + '/val_dict_list.json'\n"
            (tmp_path / UPLOAD).write_text(head + does)
            ids[name] = await start(platform, trial())
        for task_id in ids.values():
            job = await end_of(platform, task_id)
            assert (job.state, job.log_tail) == ("FINISHED", "")
        found = await results_of(platform, *ids.values())
        assert list(found) == list(ids.values())
        shown = {name: (found[task_id].text, found[task_id].error) for name, task_id in ids.items()}
        long = shown.pop("long")
        assert (len(long[0]), long[1]) == (8_000_003, "")
        assert shown == {
            **dict.fromkeys(("link", "link on the way", "pipe", "folder", "nothing"), ("", "")),
            "large": ("", "val_dict_list.json is larger than 8388608 bytes"),
            "no text": ("\ufffd[1]\0", ""),
        }


async def test_answers_have_room_for_some_results(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        (tmp_path / UPLOAD).write_text("import time; time.sleep(600)")
        ids = [await start(platform, trial()) for _ in range(7)]
        for task_id in ids:
            (tmp_path / "execs" / task_id / "results" / "val_dict_list.json").write_bytes(b"\xff" * (8 << 20))
        seen: list[str] = []
        wanted = ids
        while wanted:
            request = trials_pb2.ReadTrialResultsRequest(task_ids=wanted)
            answer = await platform.trials.ReadTrialResults(request)
            assert all(len(results.text) == 8 << 20 for results in answer.results)
            seen += [results.task_id for results in answer.results]
            wanted = list(answer.unread_task_ids)
        assert seen == ids


SLEEPS = "import time; print('here', flush=True); time.sleep(600)"


async def test_its_user_stops_a_trial(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        (tmp_path / UPLOAD).write_text(SLEEPS)
        task_id = await start(platform, trial())
        await scheduling_room.until(platform, task_id, "RUNNING")
        waiting = asyncio.create_task(end_of(platform, task_id))
        with acting_as(ALICE):
            await platform.execs.StopExec(scheduling_pb2.StopExecRequest(id=task_id))
        assert (await waiting).state == "KILLED"
        # As it was asked for first, and as it stands.
        await start(platform, trial(), task_id)
        assert (await end_of(platform, task_id)).state == "KILLED"


async def test_a_trial_is_deleted_while_it_runs(tmp_path: Path, database_url: str) -> None:
    async with service(tmp_path, database_url) as platform:
        (tmp_path / UPLOAD).write_text(SLEEPS)
        one, other = [await start(platform, trial()) for _ in range(2)]
        await scheduling_room.until(platform, one, "RUNNING")
        await delete(platform, one)
        await until_gone(tmp_path, platform, one)
        with acting_as(ALICE):
            await platform.execs.DeleteExec(scheduling_pb2.DeleteExecRequest(id=other))
        await until_gone(tmp_path, platform, other)
        never = uuid4().hex
        await delete(platform, never)
        for task_id in (one, other, never):
            with pytest.raises(grpc.aio.AioRpcError, match="was deleted") as caught:
                await start(platform, trial(), task_id)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert left_behind(tmp_path) == []


async def test_the_same_start_many_times_is_one_trial(tmp_path: Path, database_url: str) -> None:
    async with service(tmp_path, database_url) as platform:
        (tmp_path / UPLOAD).write_text("import os; print(os.environ['DLMESH_JOB_ATTEMPT'])")
        task_id = uuid4().hex
        await asyncio.gather(*(start(platform, trial(study=f"s{number}"), task_id) for number in range(8)))
        assert (await end_of(platform, task_id)).state == "FINISHED"
        await start(platform, trial(arguments="--exec-start PyTorch --model-main gone.py"), task_id)
        assert left_behind(tmp_path) == [task_id]
        assert (tmp_path / "jobs" / task_id / "attempt-1" / "rank-0.out").read_text() == "1\n"
        assert not (tmp_path / "jobs" / task_id / "attempt-2").exists()


async def test_the_id_of_a_users_task_is_no_trials(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        line = "--exec-start PyTorch --user-cmd -- sleep 600"
        with acting_as(ALICE):
            task = await platform.execs.StartExec(iter([scheduling_pb2.StartExecRequest(arguments=line)]))
        (tmp_path / UPLOAD).write_text("print(1)")
        with pytest.raises(grpc.aio.AioRpcError, match=r"task_id: .*no exec task's"):
            await start(platform, trial(), task.id)
        await delete(platform, task.id)
        assert await results_of(platform, task.id) == {}
        with acting_as(ALICE):
            assert [row.id for row in await collect(platform.execs.ListExecs(scheduling_pb2.ListExecsRequest()))] == [
                task.id
            ]


async def test_a_command_needs_no_upload(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        line = "--exec-start PyTorch --user-cmd -- cp config.json ../results/val_dict_list.json"
        task_id = await start(platform, trial(arguments=line, upload="", config_json="[1]"))
        assert (await end_of(platform, task_id)).state == "FINISHED"
        assert (await results_of(platform, task_id))[task_id].text == "[1]"


async def test_an_end_is_told_by_a_service_that_was_started_again(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        (tmp_path / UPLOAD).write_text(STEPS)
        task_id = await start(platform, trial(config_json='{"lr": 1}', environment={"SUBID": "1", "MINE": "2"}))
        await scheduling_room.until(platform, task_id, "RUNNING")
    async with service(tmp_path) as platform:
        waiting = asyncio.create_task(end_of(platform, task_id))
        (tmp_path / "data" / "go").touch()
        assert (await waiting).state == "FINISHED"


async def test_who_waits_hears_of_any_of_the_jobs_or_of_none(tmp_path: Path) -> None:
    async with service(tmp_path) as platform:
        (tmp_path / UPLOAD).write_text(SLEEPS)
        task_id = await start(platform, trial())
        for seconds in (-1.0, 30.5, float("nan")):
            with pytest.raises(grpc.aio.AioRpcError, match=r"seconds: .*0 to 30"):
                await platform.jobs.AwaitEnds(jobs_pb2.AwaitEndsRequest(job_ids=[task_id], seconds=seconds))
        assert await platform.ends.await_ends([task_id], 0.01) == set()
        assert await platform.ends.await_ends([task_id, "gone"], 30.0) == {"gone"}


async def test_a_service_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(job_client, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(AwaitEnds, "__call__", silent)
    async with service(tmp_path) as platform:
        with pytest.raises(ServiceError) as caught:
            await platform.ends.await_ends(["j"], 0.1)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
