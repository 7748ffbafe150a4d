"""Models with a kernel over gRPC, on a real database and disk; pools are played."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.inference.v1 import kernels_pb2 as pb
from inference_service.kernels.domain.pools import (
    KernelFailedError,
    KernelTask,
    NotStartedError,
    PoolPhase,
    PoolState,
    QueueFullError,
    TaskTimeoutError,
)
from kernel_fakes import FakePools, KernelModelRoom, kernel_model_room, refused, trailing
from testkit.services import ALICE, BOB, acting_as, collect

ABORTED, INVALID = grpc.StatusCode.ABORTED, grpc.StatusCode.INVALID_ARGUMENT
FORBIDDEN, MISSING = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[KernelModelRoom]:
    async with kernel_model_room(tmp_path, max_task_bytes=1000, max_model_bytes=2_000_000) as made:
        made.write()
        with acting_as(ALICE):
            yield made


async def test_others_see_nothing_of_it(room: KernelModelRoom) -> None:
    await room.publish()
    with acting_as(BOB):
        assert await collect(room.stub.ListKernelModels(pb.ListKernelModelsRequest())) == []
        for call, request in (
            (room.stub.GetKernelModel, pb.GetKernelModelRequest),
            (room.stub.GetKernelModelReadme, pb.GetKernelModelReadmeRequest),
            (room.stub.GetKernelProfile, pb.GetKernelProfileRequest),
            (room.stub.UpdateKernelProfile, pb.UpdateKernelProfileRequest),
            (room.stub.UpdateKernelModel, pb.UpdateKernelModelRequest),
            (room.stub.DeleteKernelModel, pb.DeleteKernelModelRequest),
            (room.stub.StartKernelModel, pb.StartKernelModelRequest),
            (room.stub.StopKernelModel, pb.StopKernelModelRequest),
            (room.stub.GetKernelInstances, pb.GetKernelInstancesRequest),
            (room.stub.GetKernelStream, pb.GetKernelStreamRequest),
            (room.stub.TestKernelModel, pb.TestKernelModelRequest),
            (room.stub.InvokeKernelModel, pb.InvokeKernelModelRequest),
        ):
            await refused(call(request(name="pong")), FORBIDDEN, "pong")
            await refused(call(request(name="none")), MISSING, "edimodel 'none' does not exist")
        await refused(room.publish(), grpc.StatusCode.ALREADY_EXISTS, "pong")
    await room.start()
    with acting_as(BOB):
        await refused(room.invoke(), FORBIDDEN, "pong")
    assert [one.name for one in await collect(room.stub.ListKernelModels(pb.ListKernelModelsRequest()))] == ["pong"]


async def test_starting_asking_and_stopping(room: KernelModelRoom) -> None:
    await room.publish()
    await refused(room.invoke(), ABORTED, "is STOPPED")
    room.pools.phase = PoolState(PoolPhase.STARTING)
    await room.start(state="STARTING")
    await refused(room.invoke(), ABORTED, "is STARTING")
    room.pools.phase = PoolState(PoolPhase.READY)
    await room.start()
    [launch] = room.pools.launches.values()
    assert (launch.name, launch.kernel_file, launch.folder) == (
        "pong",
        "kernel.py",
        room.kernels / launch.uid / "model",
    )
    answer = await room.invoke("grüß")
    assert (answer.content_type, answer.data.decode()) == ("text/plain; charset=utf-8", "pong grüß")
    # Starting what is started changes nothing.
    await room.start()
    change = pb.UpdateKernelModelRequest(name="pong", model=pb.KernelModel(tag="x"))
    profile = pb.UpdateKernelProfileRequest(name="pong", profile=pb.KernelProfile(type="x"))
    for work in (
        room.stub.UpdateKernelModel(change),
        room.stub.UpdateKernelProfile(profile),
        room.stub.DeleteKernelModel(pb.DeleteKernelModelRequest(name="pong")),
    ):
        await refused(work, ABORTED, "'pong' is STARTED; stop it first")
    room.pools.may_drain.clear()
    await room.stop(state="STOPPING")
    await refused(room.invoke(), ABORTED, "is STOPPING")
    await refused(room.start(), ABORTED, "is being stopped")
    room.pools.may_drain.set()
    await room.reach("STOPPED")
    await room.stop()
    assert room.pools.launches == {}
    uid = launch.uid
    await room.stub.DeleteKernelModel(pb.DeleteKernelModelRequest(name="pong"))
    assert not (room.kernels / uid).exists()
    assert list(room.kernels.iterdir()) == []
    await refused(room.model(), MISSING, "pong")
    await room.publish()


async def test_one_that_cannot_start_fails_with_its_words_and_hurts_no_other(room: KernelModelRoom) -> None:
    await room.publish()
    await room.publish("good")
    await room.start("good")
    room.pools.phase = PoolState(PoolPhase.FAILED, "kernel ended 5 times: ImportError: no module named x")
    model = await room.start(state="FAILED")
    assert "no module named x" in model.status_message
    good = await room.reach("FAILED", "good")
    assert "no module named x" in good.status_message
    room.pools.phase = PoolState(PoolPhase.READY)
    # A failed one may be started again, changed and deleted.
    await room.start()
    await room.start("good")
    room.pools.phase = PoolState(PoolPhase.FAILED, "again")
    await room.reach("FAILED")
    await room.stop()
    assert (await room.model()).status_message == ""
    await room.stub.DeleteKernelModel(pb.DeleteKernelModelRequest(name="pong"))


async def test_a_restart_of_the_service_starts_what_was_started(tmp_path: Path, database_url: str) -> None:
    async with kernel_model_room(tmp_path, database_url) as room:
        with acting_as(ALICE):
            room.write()
            await room.publish()
            await room.publish("stopping")
            await room.start()
            await room.start("stopping")
            room.pools.may_drain.clear()
            await room.stop("stopping", "STOPPING")
    pools = FakePools()
    async with kernel_model_room(tmp_path, database_url, pools) as room:
        with acting_as(ALICE):
            # The first task waits until the loop has been there.
            assert (await room.invoke()).data == b"pong ping"
            await room.reach("STOPPED", "stopping")
            assert [launch.name for launch in pools.launches.values()] == ["pong"]
            assert [launch.is_proven for launch in pools.launches.values()] == [True]


async def test_what_a_kill_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    async with kernel_model_room(tmp_path) as room:
        with acting_as(ALICE):
            room.write()
            (room.data / "w.bin").touch()
            await room.publish(weight_path="w.bin")
            [kept] = room.kernels.iterdir()
            [weights] = (kept / "weights").iterdir()
    (kept / "weights" / "replaced").mkdir()
    (kept / "weights" / "young").mkdir()
    for path in (weights, kept / "weights" / "replaced"):
        os.utime(path, (1, 1))
    for name in (".draft-a", ".old-b", "c", ".draft-young"):
        (room.kernels / name / "model").mkdir(parents=True)
        if "young" not in name:
            os.utime(room.kernels / name, (1, 1))
    os.utime(kept, (1, 1))
    async with kernel_model_room(tmp_path):
        while len(left := sorted(path.name for path in room.kernels.iterdir())) > 2:
            await asyncio.sleep(0.01)
        while (kept / "weights" / "replaced").exists():
            await asyncio.sleep(0.01)
    assert left == sorted([".draft-young", kept.name])
    assert {path.name for path in (kept / "weights").iterdir()} == {weights.name, "young"}


async def test_errors_of_tasks_have_their_codes(room: KernelModelRoom) -> None:
    await room.publish()
    await room.start()
    errors = {
        "full": QueueFullError("1000 tasks wait"),
        "slow": TaskTimeoutError("took longer than 60 s"),
        "broken": KernelFailedError("x" * 5000 + "ValueError: what?"),
        "draining": NotStartedError("it is being stopped"),
    }

    async def answer(task: KernelTask) -> str:
        raise errors[task.input]

    room.pools.answer = answer
    full = await refused(room.invoke("full"), grpc.StatusCode.RESOURCE_EXHAUSTED, "1000 tasks wait")
    assert trailing(full)["retry-after"] == "1"
    assert "x-http-code" not in trailing(full)
    await refused(room.invoke("slow"), grpc.StatusCode.DEADLINE_EXCEEDED, "took longer")
    broken = await refused(room.invoke("broken"), grpc.StatusCode.INTERNAL, "ValueError: what?")
    assert len(broken.details() or "") < 2200
    await refused(room.invoke("draining"), ABORTED, "being stopped")
    large = await refused(room.invoke("x" * 1001), grpc.StatusCode.RESOURCE_EXHAUSTED, "1000 bytes for one task")
    assert trailing(large)["x-http-code"] == "413"
    await refused(room.invoke(b"\xff"), INVALID, "body.*UTF-8")


async def test_what_a_task_is_given(room: KernelModelRoom) -> None:
    await room.publish()
    await room.start()
    request = pb.TestKernelModelRequest(
        name="pong",
        action_type="Classification",
        data_type="image:raw_data",
        user="ann",
        attributes=[pb.KernelAttribute(key="threshold", value="0.5")],
        data_values=[pb.KernelAttribute(key="ä.png", value="aGk=")],
    )
    answer = await room.stub.TestKernelModel(request)
    [task] = room.pools.tasks
    assert json.loads(task.input) == {
        "action_type": "Classification",
        "data_type": "image:raw_data",
        "data_value": [{"key": "ä.png", "value": "aGk="}],
        "attributes": [{"key": "threshold", "value": "0.5"}],
        "user": "ann",
    }
    assert task.timeout_seconds < 60
    assert (answer.model_name, answer.is_resolved, answer.output) == ("pong", False, f"pong {task.input}")
    score = {"label": "cat", "prob": 0.75, "bbox": "1,2,3,4"}
    results = {"type": "detection", "detResults": [{"sampleId": "ä.png", "isImage": True, "results": [score]}]}

    async def detect(task: KernelTask) -> str:
        return json.dumps(results)

    room.pools.answer = detect
    answer = await room.stub.TestKernelModel(request)
    [result] = answer.results
    assert (answer.is_resolved, answer.output, result.type) == (True, "", "detection")
    [sample] = result.detection_results
    assert (sample.sample_id, sample.results[0].label, sample.results[0].bounding_box) == ("ä.png", "cat", "1,2,3,4")
    answer = await room.invoke()
    assert (answer.content_type, json.loads(answer.data)) == ("application/json", results)
    del request.data_values[:]
    await refused(room.stub.TestKernelModel(request), INVALID, "^data_value")


async def test_statistics(room: KernelModelRoom) -> None:
    await room.publish()
    request = pb.GetKernelInstancesRequest(name="pong")
    stopped = await room.stub.GetKernelInstances(request)
    assert (stopped.state, list(stopped.instance.instances)) == ("STOPPED", [])
    await room.start()
    found = await room.stub.GetKernelInstances(request)
    [daemon] = found.instance.instances
    assert (found.state, daemon.clients, daemon.pending_tasks, daemon.requests_per_second) == ("STARTED", 2, 7, 2)
    assert daemon.bytes_per_second == 2**31 - 1
    [kernel] = daemon.kernels
    assert (kernel.id, kernel.host, kernel.status, kernel.running_tasks) == ("k1", "here", "busy", 1)
    assert (kernel.total_tasks, kernel.finished_tasks, kernel.failed_tasks) == (2**31 - 1, 3, 1)
    uri = await room.stub.GetKernelStream(pb.GetKernelStreamRequest(name="pong"))
    assert uri.value == "grpc://127.0.0.1:9280/dlmesh.inference.v1.KernelStreamService/StreamKernelTasks"


async def test_what_clients_send_back_changes_nothing(room: KernelModelRoom) -> None:
    room.write(model_json='{"attributes": {"a": "1"}, "mk_environments": {"E": "f"}, "weight_path": "."}')
    await room.publish()
    shown = await room.model()
    request = pb.UpdateKernelModelRequest(name="pong", model=shown)
    await room.stub.UpdateKernelModel(request)
    later = await room.model()
    for message in (shown, later):
        message.ClearField("updated_at")
        message.ClearField("reference_updated_at")
    assert later == shown
    profile = await room.stub.GetKernelProfile(pb.GetKernelProfileRequest(name="pong"))
    await room.stub.UpdateKernelProfile(pb.UpdateKernelProfileRequest(name="pong", profile=profile))
    again = await room.stub.GetKernelProfile(pb.GetKernelProfileRequest(name="pong"))
    assert (again.policy, again.kernel) == (profile.policy, profile.kernel)


async def test_either_spelling_changes_a_model(room: KernelModelRoom) -> None:
    await room.publish()
    for number, (tag, umask, environments, most) in enumerate(
        (
            ("tag", "umask", "environments", "instance_max"),
            ("version", "reference_umask", "reference_environments", "reference_instance_max"),
        )
    ):
        message = await room.model()
        setattr(message, tag, f"tag {number}")
        setattr(message, umask, f"02{number}")
        del getattr(message, environments)[:]
        getattr(message, environments).add(name="A", value=str(number))
        setattr(message, most, 5 + number)
        message.attributes.add(key=f"k{number}", value="v")
        message.resource_requirement = f"ncpus=1,ncpus_limit={number + 1}"
        await room.stub.UpdateKernelModel(pb.UpdateKernelModelRequest(name="pong", model=message))
        found = await room.model()
        assert (found.tag, found.umask, found.instance_max) == (f"tag {number}", f"02{number}", 5 + number)
        assert found.environments[0].value == str(number)
        assert len(found.attributes) == number + 1
    profile = await room.stub.GetKernelProfile(pb.GetKernelProfileRequest(name="pong"))
    assert (profile.policy.kernel_max, profile.kernel.umask) == (6, "021")
    assert profile.resource_allocation.kernel.resource_requirement == "ncpus=1,ncpus_limit=2"


NO_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"name": "other"}, "^name: 'other'"),
    ({"runtime": "other"}, "^runtime: 'other'"),
    ({"reference_kernel_path": "x.py"}, "^kernel_path: 'x.py'"),
    ({"model_path": "/etc"}, "^model_path"),
    ({"umask": "9"}, "^kernel.umask"),
    ({"tag": "a", "version": "b"}, "^tag: 'a'.*version"),
    ({"instance_min": 9}, "^policy.kernel_max: 2"),
    ({"weight_path": "/etc/passwd"}, "^weight_path"),
    ({"resource_requirement": "all"}, "^resource_allocation.kernel.resreq: 'all'"),
    ({"environments": [pb.KernelEnvironment(name="PYTHONPATH", value="x")]}, "^mk_environments"),
]


async def test_changes_that_are_refused(room: KernelModelRoom) -> None:
    await room.publish()
    for fields, words in NO_CHANGES:
        request = pb.UpdateKernelModelRequest(name="pong", model=pb.KernelModel(**fields))
        await refused(room.stub.UpdateKernelModel(request), INVALID, words)


async def test_profiles(room: KernelModelRoom) -> None:
    await room.publish()
    request = pb.GetKernelProfileRequest(name="pong")
    first = await room.stub.GetKernelProfile(request)
    assert (first.replica, first.policy.kernel_min, first.policy.kernel_max) == (1, 1, 2)
    assert (first.policy.kernel_delay_release_time, first.policy.task_batch_size) == (60, 8)
    assert (first.policy.task_execution_timeout, first.policy.task_pipe_size, first.kernel.gpu) == (60, 1, "no")
    change = pb.KernelProfile(
        name="pong",
        policy=pb.KernelPolicy(kernel_min=0, kernel_max=-1, stream_discard_slow_tasks=True),
        kernel=pb.KernelSettings(gpu="Shared", environments=[pb.KernelEnvironment(name="A", value="b")]),
        environments=[pb.KernelEnvironment(name="C", value="d")],
    )
    change.resource_allocation.kernel.consumer = "/me"
    await room.stub.UpdateKernelProfile(pb.UpdateKernelProfileRequest(name="pong", profile=change))
    found = await room.stub.GetKernelProfile(request)
    assert (found.policy.kernel_min, found.policy.kernel_max, found.policy.task_batch_size) == (0, -1, 8)
    assert (found.kernel.gpu, found.kernel.environments[0].value, found.environments[0].value) == ("shared", "b", "d")
    assert (found.policy.stream_discard_slow_tasks, found.resource_allocation.kernel.consumer) == (True, "/me")
    # What is not given stays.
    more = pb.KernelProfile(policy=pb.KernelPolicy(kernel_delay_release_time=0))
    await room.stub.UpdateKernelProfile(pb.UpdateKernelProfileRequest(name="pong", profile=more))
    found = await room.stub.GetKernelProfile(request)
    assert (found.policy.kernel_delay_release_time, found.policy.kernel_max, len(found.environments)) == (0, -1, 1)
    for wrong, words in (
        (pb.KernelProfile(name="other"), "^name"),
        (pb.KernelProfile(replica=2), "^replica: 2"),
        (pb.KernelProfile(policy=pb.KernelPolicy(kernel_min=-5)), "^policy.kernel_min: -5"),
        (pb.KernelProfile(kernel=pb.KernelSettings(run_as="root2")), "^kernel.run_as: 'root2'"),
        (pb.KernelProfile(kernel=pb.KernelSettings(working_directory="/tmp")), "^kernel.working_directory"),
    ):
        work = room.stub.UpdateKernelProfile(pb.UpdateKernelProfileRequest(name="pong", profile=wrong))
        await refused(work, INVALID, words)


async def test_what_is_changed_is_in_the_audit_trail_and_what_is_asked_is_not(
    room: KernelModelRoom, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dlmesh.audit"):
        await room.publish()
        await room.start()
        await room.invoke()
        await room.stop()
    rows = [json.loads(record.message) for record in caplog.records if record.name == "dlmesh.audit"]
    assert [row["what"].rpartition("/")[2] for row in rows] == [
        "PublishKernelModel",
        "StartKernelModel",
        "StopKernelModel",
    ]
