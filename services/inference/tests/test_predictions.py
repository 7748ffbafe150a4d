"""Predictions of the whole service over gRPC on a real database and disk; its peers and Triton are played."""

from __future__ import annotations

import json
import os
from pathlib import Path

import grpc
import pytest
from dlmesh.inference.v1 import inference_pb2 as pb
from dlmesh.inference.v1 import serving_pb2, serving_pb2_grpc
from inference_service.storage.specs import PredictionSpec
from prediction_room import (
    CLASSIFIED,
    MAX_IMAGE_BYTES,
    Room,
    application,
    multipart,
    publish,
    refused,
    uploaded,
    uploads,
)
from servicekit.errors import invalid
from servicekit.identity import acting_as
from testkit.services import ALICE, BOB, collect, running
from triton_fixtures import until


async def test_from_training_to_results(room: Room) -> None:
    await room.create()
    assert room.catalog.known["online"].type == "Inference"
    assert room.catalog.known["online"].owner == "alice"
    await room.start([("image0", "7.png", b"seven"), ("image1", None, b"one"), ("photo", "7.png", b"again")])
    job_id = await room.submitted()
    request = room.jobs.requests[job_id]
    assert (request.owner, request.model, request.instance_group) == ("alice", "online", "group-1")
    assert list(request.command[:3]) == ["python", "-m", "inference_service.worker.predict"]
    spec = PredictionSpec.read(request.command[3])
    samples = uploaded(spec)
    assert list(samples) == ["7.png", "image1", "7.png (2)"]
    assert [path.read_bytes() for path in samples.values()] == [b"seven", b"one", b"again"]
    assert (Path(spec.bundle) / "model.py").exists()
    assert spec.threshold == 0.1

    room.jobs.move(job_id, "RUNNING", done=1, total=3, driver_id="driver-1")
    running_now = await room.settled("RUNNING")
    assert (running_now.driver_id, running_now.progress) == ("driver-1", "1/3")
    assert not running_now.HasField("result")
    code, words = await refused(room.stub.GetPredictionResult(pb.GetPredictionResultRequest(name="p")))
    assert (code, "RUNNING" in words) == (grpc.StatusCode.ABORTED, True)

    scores = [{"index": 7, "label": "seven", "prob": 0.9}, {"index": 1, "label": "one", "prob": 0.1}]
    publish(
        spec,
        {"sampleId": "7.png", "file": "00000-7.png", "scores": scores},
        {"sampleId": "image1", "file": "00001-image1", "error": "no"},
        {"sampleId": "7.png (2)", "file": "00002-7.png", "scores": scores[:1]},
    )
    summary = {"sample": "7.png", "index": 7, "label": "seven", "probability": 0.9}
    room.jobs.move(
        job_id,
        "FINISHED",
        result={"samples": 3, "best": summary, "unreadable": ["image1"], "reason": "no", **CLASSIFIED},
    )
    detail = await room.settled("FINISHED")
    assert (detail.result.item, detail.result.result.index, detail.result.result.name) == ("7.png", "7", "seven")
    assert detail.result.result.probability == pytest.approx(0.9)
    assert detail.status_message == "1 of 3 have no result: image1; the first: no"
    assert (detail.progress, detail.result_file) == ("3/3", "results.jsonl")
    assert (detail.model_name, detail.threshold, detail.instance_group_name) == ("online", "0.1", "local")
    assert detail.input_files == "7.png,image1,7.png (2)"
    answer = await room.stub.GetPredictionResult(pb.GetPredictionResultRequest(name="p"))
    assert (answer.type, answer.total) == ("classification", 3)
    first, second, _ = answer.classification_results
    assert first.input_path == f"{spec.input_dir}/00000-7.png"
    assert [(score.label, score.probability) for score in first.results] == [("seven", 0.9), ("one", 0.1)]
    assert (first.is_image, second.is_image, len(second.results)) == (True, False, 0)

    await room.stub.StopPrediction(pb.StopPredictionRequest(name="p"))
    await room.stub.DeletePrediction(pb.DeletePredictionRequest(name="p"))
    assert (await refused(room.prediction()))[0] is grpc.StatusCode.NOT_FOUND
    assert room.prediction_folders == []
    assert room.jobs.deleted == [job_id]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"modelname": ""}, "modelname"),
        ({"modelname": "none"}, "online"),
        ({"modelname": "digits"}, "inference model"),
        ({"predictname": ""}, "predictname"),
        ({"predictname": "startpredict"}, "reserved"),
        ({"predictname": "../x"}, "predictname"),
        ({"threshold": ""}, "threshold"),
        ({"threshold": "much"}, "0 to 1"),
        ({"threshold": "1.5"}, "0 to 1"),
        ({"threshold": "nan"}, "0 to 1"),
        ({"sigid": "moon"}, "local"),
        ({"signame": "moon"}, "signame"),
        ({"sigid": "group-1", "signame": "big"}, "signame"),
        ({"masterUrl": "spark://elsewhere"}, "local://here"),
        ({"modelname": "x" * 5000}, "4096"),
    ],
)
async def test_refused_uploads_leave_nothing(room: Room, fields: dict[str, str], words: str) -> None:
    await room.create()
    code, message = await refused(room.start(**fields))
    assert (code, words in message) == (grpc.StatusCode.INVALID_ARGUMENT, True), message
    assert room.prediction_folders == []


async def test_uploads_of_every_shape(room: Room) -> None:
    await room.create()
    big = bytes(range(256)) * 1000
    await room.start([("image0", None, big), ("", "", b"x"), ("image2", "../../etc/passwd", b"y")], piece=1000)
    spec = PredictionSpec.read(room.jobs.requests[await room.submitted()].command[3])
    contents = {name: path.read_bytes() for name, path in uploaded(spec).items()}
    assert contents == {"image0": big, "image1": b"x", "passwd": b"y"}
    assert all(path.parent == Path(spec.input_dir) for path in uploaded(spec).values())

    await room.start([(f"image{i}", f"{i}.png", b"i") for i in range(300)], predictname="many", signame="big")
    detail = await room.prediction("many")
    assert (len(detail.input_files.split(",")), detail.instance_group_id) == (300, "group-2")
    # Fields that come as files, before or after the images, are fields.
    parts = [("predictname", "p.txt", b"as-file"), ("image0", None, b"1"), ("csrftoken", None, b"t")]
    body = multipart([*parts, ("modelname", "m", b"online"), ("threshold", "t", b"1")])
    await room.stub.StartPrediction(uploads(body, 1 << 16))
    assert (await room.prediction("as-file")).input_files == "image0"


async def test_uploads_that_are_too_large_cut_off_or_empty(room: Room) -> None:
    await room.create()
    huge = [("image0", "huge.png", b"x" * (MAX_IMAGE_BYTES + 1))]
    code, words = await refused(room.start(huge))
    assert (code, "image0" in words) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    assert (await refused(room.start([])))[1].startswith("image0")
    body = multipart([("image0", "a.png", b"a")])[:-20]
    assert (await refused(room.stub.StartPrediction(uploads(body, 10))))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert (await refused(room.stub.StartPrediction(uploads(b"", 10))))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert room.prediction_folders == []


async def test_stop_before_and_after_the_job_exists(room: Room) -> None:
    room.server.is_away = True
    await room.create()
    await room.start()
    delete = pb.DeletePredictionRequest(name="p")
    assert (await refused(room.stub.DeletePrediction(delete)))[0] is grpc.StatusCode.ABORTED
    await room.stub.StopPrediction(pb.StopPredictionRequest(name="p"))
    assert (await room.settled("STOPPED")).status_message == "stopped before it started"
    room.server.is_away = False
    await room.start(predictname="q")
    job_id = await room.submitted("q")
    await room.stub.StopPrediction(pb.StopPredictionRequest(name="q"))

    async def told() -> bool:
        return room.jobs.stopped == [job_id]

    await until(told)
    _, message = await refused(room.stub.DeletePrediction(pb.DeletePredictionRequest(name="q")))
    assert message == "prediction 'q' is being stopped; try again in a moment"
    room.jobs.move(job_id, "KILLED")
    await room.settled("STOPPED", "q")


async def test_jobs_that_fail_vanish_or_are_refused(room: Room) -> None:
    await room.create()
    await room.start()
    room.jobs.move(
        await room.submitted(), "ERROR", reason="rank 0 exited with code 1", log_tail="Triton refuses: shape"
    )
    assert "Triton refuses: shape" in (await room.settled("FAILED")).status_message
    await room.start(predictname="lost")
    del room.jobs.facts[await room.submitted("lost")]
    assert "no longer knows" in (await room.settled("FAILED", "lost")).status_message
    await room.start(predictname="silent")
    room.jobs.move(await room.submitted("silent"), "FINISHED")
    assert "without reporting" in (await room.settled("FAILED", "silent")).status_message
    await room.start(predictname="empty")
    room.jobs.move(await room.submitted("empty"), "FINISHED", result={"samples": 1, **CLASSIFIED})
    assert "without a result file" in (await room.settled("FAILED", "empty")).status_message
    room.jobs.refusal = invalid("ranks", 1, "at most 0 slots")
    await room.start(predictname="refused")
    assert "at most 0 slots" in (await room.settled("FAILED", "refused")).status_message


async def test_a_scheduling_service_that_is_away_is_waited_for(room: Room) -> None:
    await room.create()
    room.jobs.is_away = True
    await room.start()

    async def asked() -> bool:
        return room.jobs.unanswered > 0

    await until(asked)
    assert (await room.prediction()).status == "SUBMITTED"
    room.jobs.is_away = False
    await room.submitted()
    assert room.jobs.submissions == 1


async def test_lists(room: Room) -> None:
    await room.create()
    await room.create("other")
    await room.start(predictname="a")
    await room.start(predictname="b", modelname="other")

    async def names(**fields: str) -> list[str]:
        found = await collect(room.stub.ListPredictions(pb.ListPredictionsRequest(**fields)))
        return [each.prediction_name for each in found]

    assert await names(model_name="online", flag="false") == ["a"]
    assert await names(flag="False") == ["a", "b"]
    assert await names(model_name="digits") == []
    assert (await refused(names(model_name="none")))[0] is grpc.StatusCode.NOT_FOUND
    code, words = await refused(names(model_name="online", flag="true"))
    assert (code, "flag" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_what_lies_below_a_data_root_is_predicted_where_it_lies(room: Room) -> None:
    await room.create()
    data = room.settings.data_roots[0]
    (data / "pictures").mkdir()
    (data / "one.csv").write_text("a,b\n1,2\n")
    await room.start([], inputpath="pictures", predictname="folder")
    spec = PredictionSpec.read(room.jobs.requests[await room.submitted("folder")].command[3])
    assert Path(spec.input_dir) == data / "pictures"
    assert str(data.resolve()) in spec.roots
    # The worker looks what there is: it may be a million files.
    assert not Path(spec.manifest).exists()
    detail = await room.prediction("folder")
    assert (detail.input_path, detail.input_files, detail.progress) == (str(data / "pictures"), "", "")
    await room.start([], inputpath=str(data / "one.csv"), predictname="file")
    spec = PredictionSpec.read(room.jobs.requests[await room.submitted("file")].command[3])
    assert uploaded(spec) == {"one.csv": data / "one.csv"}
    assert (await room.prediction("file")).input_files == "one.csv"


async def test_input_paths_are_confined(room: Room) -> None:
    await room.create()
    data = room.settings.data_roots[0]
    os.mkfifo(data / "pipe")
    (data / "link").symlink_to("/etc")
    for path, words in (
        ("../db", "inside"),
        ("/etc/passwd", "inside"),
        ("link/passwd", "inside"),
        ("missing", "existing"),
        ("pipe", "a folder or a file"),
    ):
        code, message = await refused(room.start([], inputpath=path))
        assert (code, message.startswith("inputpath"), words in message) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            True,
            True,
        ), message
    code, message = await refused(room.start(inputpath="."))
    assert (code, "uploaded" in message) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert room.prediction_folders == []


async def test_an_odd_number_of_pictures_is_not_compared(room: Room) -> None:
    await room.create()
    await room.serving()
    serving = Path(room.trainings.training.checkpoints_path) / "serving.json"
    serving.write_text(json.dumps({**json.loads(serving.read_text()), "task": "comparison"}))
    images = [(f"image{index}", f"{index}.png", b"i") for index in range(4)]
    assert await refused(room.start(images[:3])) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "image0: '(3 files)' is not valid; allowed: an even number of files: they are compared two by two",
    )
    await room.start(images)


async def test_limits_of_uploads_and_of_what_waits(tmp_path: Path) -> None:
    built, room = application(None, tmp_path, max_upload_files=2, max_upload_bytes=10_000, max_active_predictions=2)
    async with running(built, room.settings) as room.client:
        with acting_as(ALICE):
            await room.create()
            images = [(f"image{index}", f"{index}.png", b"i") for index in range(30)]
            for parts, words in ((images, "parts"), ([("image0", "0.png", bytes(10_000))], "10000 bytes")):
                code, message = await refused(room.start(parts))
                assert (code, words in message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True), message
            await room.start(predictname="a")
            await room.start(predictname="b")
            code, message = await refused(room.start(predictname="c"))
            assert (code, message) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "2 predictions of alice wait or run, at most 2 may; stop one or wait",
            )
        with acting_as(BOB):
            room.catalog.add("bobs-digits", "bob")
            await room.create("bobs", model_name="bobs-digits")
            await room.start(modelname="bobs", predictname="c")
        with acting_as(ALICE):
            room.jobs.move(await room.submitted("a"), "KILLED")
            await room.settled("STOPPED", "a")
            await room.start(predictname="d")


async def test_many_names_are_cut_and_counted(room: Room) -> None:
    await room.create()
    await room.start([(f"image{index}", "same.png", b"i") for index in range(1200)])
    detail = await room.prediction()
    names = detail.input_files.split(",")
    assert (len(names), names[0], names[999], names[1000]) == (1001, "same.png", "same.png (1000)", "(200 more)")
    spec = PredictionSpec.read(room.jobs.requests[await room.submitted()].command[3])
    assert list(uploaded(spec))[-1] == "same.png (1200)"
    assert detail.progress == "0/1200"


async def test_the_version_is_frozen_when_it_is_asked_for(room: Room) -> None:
    versions = room.client.stub(serving_pb2_grpc.ServedModelServiceStub)

    async def ready(number: int) -> bool:
        found = await versions.GetServedModel(serving_pb2.GetServedModelRequest(name="online"))
        return any(each.version == number and each.state == "READY" for each in found.versions)

    async def serve_second() -> None:
        room.server.offered = lambda name: frozenset({1, 2})
        request = serving_pb2.AddServedModelVersionRequest(name="online", training_name="first")
        await versions.AddServedModelVersion(request)
        await until(lambda: ready(2))
        shares = [serving_pb2.TrafficShare(version=2, percentage=100)]
        await versions.SetTraffic(serving_pb2.SetTrafficRequest(name="online", shares=shares))

    await room.create()
    await until(lambda: ready(1))
    await room.start(predictname="first")
    spec = PredictionSpec.read(room.jobs.requests[await room.submitted("first")].command[3])
    assert (spec.model_version, Path(spec.bundle).parent.name) == (1, "1")
    await serve_second()
    # The first one is not taken away from who began with it.
    deletion = serving_pb2.DeleteServedModelVersionRequest(name="online", version="1")
    assert (await refused(versions.DeleteServedModelVersion(deletion)))[0] is grpc.StatusCode.ABORTED
    await room.start(predictname="second")
    spec = PredictionSpec.read(room.jobs.requests[await room.submitted("second")].command[3])
    assert (spec.model_version, Path(spec.bundle).parent.name) == (2, "2")
