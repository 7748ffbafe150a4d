"""The whole service over gRPC on a real database and disk; only its peers and Triton are played."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from dlmesh.inference.v1 import inference_pb2 as pb
from dlmesh.inference.v1 import inference_pb2_grpc
from google.api.httpbody_pb2 import HttpBody
from inference_fakes import FakeCatalog, FakeJobs, FakeServer, FakeTrainings
from inference_service import wiring
from inference_service.domain.specs import PredictionSpec
from inference_service.settings import TritonSettings
from inference_service.usecases import serve_models
from inference_service.wiring import build
from inference_service.worker.manifest import read_manifest
from inference_service.worker.result_files import ResultFiles
from servicekit.errors import invalid
from servicekit.identity import acting_as
from servicekit.server import Application
from servicekit.settings import ServiceSettings
from testkit.services import ADMIN, ALICE, BOB, Client, collect, running, settings_for
from triton_fixtures import until, write_training

MAX_IMAGE_BYTES = 300_000
BOUNDARY = "boundary-7"
# (name, filename or None, bytes)
PartSpec = tuple[str, str | None, bytes]


@dataclass
class Room:
    """The running service and its played peers."""

    client: Client
    settings: ServiceSettings
    catalog: FakeCatalog
    trainings: FakeTrainings
    jobs: FakeJobs
    server: FakeServer

    @property
    def stub(self) -> Any:
        return self.client.stub(inference_pb2_grpc.InferenceServiceStub)

    async def create(self, name: str = "online", **fields: str) -> None:
        values = {"model_name": "digits", "training_name": "first", "inference_model_name": name}
        await self.stub.CreateInferenceModel(pb.CreateInferenceModelRequest(**(values | fields)))

    async def start(self, parts: Sequence[PartSpec] | None = None, piece: int = 1 << 16, **fields: str) -> None:
        values = {"modelname": "online", "threshold": "0.1", "predictname": "p"} | fields
        images = [("image0", "7.png", b"seven")] if parts is None else parts
        body = multipart([*images, *((name, None, text.encode()) for name, text in values.items())])
        await self.stub.StartPrediction(uploads(body, piece))

    async def prediction(self, name: str = "p") -> Any:
        return await self.stub.GetPrediction(pb.GetPredictionRequest(name=name))

    async def settled(self, status: str, name: str = "p") -> Any:
        async def reached() -> Any:
            found = await self.prediction(name)
            return found if found.status == status else None

        return await until(reached)

    async def submitted(self, name: str = "p") -> str:
        """Until its job is submitted; the job's id."""
        job_id = (await self.prediction(name)).application_id

        async def known() -> bool:
            return job_id in self.jobs.requests

        await until(known)
        return str(job_id)

    async def serving(self, name: str = "online") -> None:
        async def served() -> bool:
            return name in self.server.serving

        await until(served)

    @property
    def prediction_folders(self) -> list[Path]:
        folder = self.settings.home / "inference" / "predictions"
        return list(folder.iterdir()) if folder.exists() else []


CLASSIFIED = {"type": "classification"}


def uploaded(spec: PredictionSpec) -> dict[str, Path]:
    """What the manifest names."""
    return {sample.id: Path(spec.input_dir) / sample.file for _, sample in read_manifest(Path(spec.manifest))}


def publish(spec: PredictionSpec, *rows: dict[str, Any]) -> None:
    """Results as the worker leaves them."""
    files = ResultFiles(Path(spec.output_dir))
    files.append(rows)
    files.publish()


def multipart(parts: Sequence[PartSpec]) -> bytes:
    body = b""
    for name, filename, data in parts:
        shown = f'; filename="{filename}"' if filename is not None else ""
        body += (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{shown}\r\n\r\n'.encode() + data + b"\r\n"
        )
    return body + f"--{BOUNDARY}--\r\n".encode()


async def uploads(body: bytes, piece: int) -> AsyncIterator[Any]:
    for start in range(0, len(body), piece):
        content_type = f"multipart/form-data; boundary={BOUNDARY}" if start == 0 else ""
        yield pb.StartPredictionRequest(body=HttpBody(content_type=content_type, data=body[start : start + piece]))


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def application(room: Room | None, tmp_path: Path) -> tuple[Application, Room]:
    """A new process of the service, on the state that an old one left when there was one."""
    if room is None:
        code, checkpoints = write_training(tmp_path / "training")
        catalog = FakeCatalog()
        catalog.add("digits")
        settings = settings_for("inference", tmp_path)
        trainings = FakeTrainings(str(code), str(checkpoints))
        room = Room(None, settings, catalog, trainings, FakeJobs(), FakeServer())  # type: ignore[arg-type]
    built = build(
        room.settings,
        TritonSettings(max_image_bytes=MAX_IMAGE_BYTES),
        catalog=room.catalog,
        trainings=room.trainings,
        jobs=room.jobs,
        server=room.server,
    )
    return built, room


@pytest.fixture
async def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    monkeypatch.setattr(wiring, "REMOVALS_LATER_SECONDS", 0.2)
    built, room = application(None, tmp_path)
    async with running(built, room.settings) as room.client:
        with acting_as(ALICE):
            yield room


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
    room.jobs.move(job_id, "FINISHED", result={"samples": 3, "best": summary, "unreadable": ["image1"], **CLASSIFIED})
    detail = await room.settled("FINISHED")
    assert (detail.result.item, detail.result.result.index, detail.result.result.name) == ("7.png", "7", "seven")
    assert detail.result.result.probability == pytest.approx(0.9)
    assert "image1" in detail.status_message
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


async def test_the_default_name_is_made_of_both(room: Room) -> None:
    await room.create(name="")
    await room.serving("digits-first")


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"model_name": ""}, grpc.StatusCode.INVALID_ARGUMENT, "modelName"),
        ({"training_name": ""}, grpc.StatusCode.INVALID_ARGUMENT, "trainName"),
        ({"model_name": "none"}, grpc.StatusCode.NOT_FOUND, "none"),
        ({"training_name": "none"}, grpc.StatusCode.NOT_FOUND, "none"),
        ({"name": "a/b"}, grpc.StatusCode.INVALID_ARGUMENT, "inferenceModelName"),
        ({"name": "files"}, grpc.StatusCode.INVALID_ARGUMENT, "reserved"),
        ({"name": "digits"}, grpc.StatusCode.ALREADY_EXISTS, "digits"),
    ],
)
async def test_refused_models_leave_nothing(
    room: Room, fields: dict[str, str], code: grpc.StatusCode, words: str
) -> None:
    got, message = await refused(room.create(**fields))
    assert (got, words in message) == (code, True), message
    assert set(room.catalog.known) == {"digits"}
    # The name is still free for a good request.
    await room.create()
    await room.serving()


async def test_only_finished_trainings_of_known_frameworks_are_served(room: Room) -> None:
    room.trainings.training = replace(room.trainings.training, status="RUNNING")
    assert await refused(room.create()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "trainName: 'first' is not valid; allowed: a FINISHED training; this one is RUNNING",
    )
    room.trainings.training = replace(room.trainings.training, status="FINISHED")
    room.catalog.known["digits"] = replace(room.catalog.known["digits"], framework="Abacus")
    code, words = await refused(room.create())
    assert (code, "PyTorch" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_what_cannot_be_served_is_refused_at_once(room: Room) -> None:
    serving = Path(room.trainings.training.checkpoints_path) / "serving.json"
    serving.write_text(json.dumps({"labels": ["yes", "no"], "channels": 1}))
    assert await refused(room.create()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "trainName: 'first' is not valid; allowed: a training that can be served; of this one: "
        "serving.json of the training is not usable: it has no height, width",
    )
    assert set(room.catalog.known) == {"digits"}


async def test_names_are_taken_for_everybody_and_others_models_are_forbidden(room: Room) -> None:
    await room.create()
    assert (await refused(room.create()))[0] is grpc.StatusCode.ALREADY_EXISTS
    with acting_as(BOB):
        assert (await refused(room.create("bobs")))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert (await refused(room.start()))[0] is grpc.StatusCode.PERMISSION_DENIED
    await room.start()
    with acting_as(BOB):
        assert (await refused(room.prediction()))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert await collect(room.stub.ListPredictions(pb.ListPredictionsRequest(model_name="online"))) == []
        room.catalog.add("bobs-digits", "bob")
        await room.create("bobs", model_name="bobs-digits")
        assert (await refused(room.start(modelname="bobs")))[0] is grpc.StatusCode.ALREADY_EXISTS
    with acting_as(ADMIN):
        assert (await room.prediction()).owner == "alice"


async def test_no_triton_says_what_to_do(room: Room) -> None:
    await room.create()
    room.server.missing = "Triton is not installed: run make setup"
    for call in (room.create("more"), room.start()):
        code, words = await refused(call)
        assert (code, words) == (grpc.StatusCode.UNAVAILABLE, room.server.missing)
    assert room.prediction_folders == []


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


async def test_predictions_wait_for_their_model_and_say_so(room: Room) -> None:
    room.server.is_away = True
    await room.create()
    await room.start()

    async def waiting() -> Any:
        message = (await room.prediction()).status_message
        return message if "Triton does not answer" in message else None

    assert "LOADING" in await until(waiting)
    assert room.jobs.submissions == 0
    room.server.is_away = False
    await room.submitted()


async def test_a_model_that_fails_fails_its_predictions_with_tritons_words(room: Room) -> None:
    room.server.refusal = "RuntimeError: Missing key(s) in state_dict"
    room.server.is_away = True
    await room.create()
    await room.start()
    room.server.is_away = False
    assert "Missing key(s)" in (await room.settled("FAILED")).status_message
    code, words = await refused(room.stub.GetPredictionResult(pb.GetPredictionResultRequest(name="p")))
    assert (code, "Missing key(s)" in words) == (grpc.StatusCode.ABORTED, True)
    assert "Missing key(s)" in room.catalog.descriptions["online"]
    code, words = await refused(room.start(predictname="next"))
    assert (code, "Missing key(s)" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_a_training_that_cannot_be_exported_fails(room: Room) -> None:
    room.catalog.lists_nothing = True
    await room.create()
    (Path(room.trainings.training.checkpoints_path) / "serving.json").unlink()
    await room.start()
    room.catalog.lists_nothing = False
    assert "serving.json" in (await room.settled("FAILED")).status_message


async def test_a_model_that_takes_triton_down_is_given_up(room: Room) -> None:
    room.server.dies_on_load = True
    room.server.is_away = True
    await room.create()
    await room.start()
    room.server.is_away = False
    assert "5 times" in (await room.settled("FAILED")).status_message
    assert room.server.loads == ["online"] * 5


async def test_what_triton_lost_is_loaded_again(room: Room) -> None:
    await room.create("one")
    await room.create("two")
    await room.serving("one")
    await room.serving("two")
    room.server.serving.clear()
    await room.serving("one")
    await room.serving("two")
    await room.start(modelname="one")
    await room.submitted()


async def test_a_model_whose_process_died_is_loaded_again(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_models, "HEALTH_SECONDS", 0.05)
    await room.create()
    await room.serving()
    room.server.dead.add("online")

    async def revived() -> bool:
        return not room.server.dead

    await until(revived)
    assert room.server.loads == ["online", "online"]


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


async def test_a_deleted_model_is_unloaded(room: Room) -> None:
    await room.create()
    await room.serving()
    del room.catalog.known["online"]

    async def gone() -> bool:
        return not room.server.serving and not (room.settings.home / "inference/repository/online").exists()

    async def is_unknown() -> bool:
        # The row goes last; what is accepted until then ends as FAILED.
        try:
            await room.start(predictname=f"p-{uuid4().hex}")
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.INVALID_ARGUMENT
        return False

    await until(gone)
    await until(is_unknown)


async def test_the_name_of_a_deleted_model_is_free_at_once(room: Room) -> None:
    await room.create()
    await room.serving()
    del room.catalog.known["online"]
    await room.create()
    await room.serving()
    assert room.server.loads == ["online", "online"]


async def test_a_new_process_goes_on_where_the_old_one_ended(tmp_path: Path) -> None:
    built, room = application(None, tmp_path)
    room.server.is_away = True
    with acting_as(ALICE):
        async with running(built, room.settings) as room.client:
            await room.create()
            await room.start()
        room.server.is_away = False
        built, _ = application(room, tmp_path)
        async with running(built, room.settings) as room.client:
            job_id = await room.submitted()
        room.server.serving.clear()
        publish(PredictionSpec.read(room.jobs.requests[job_id].command[3]))
        room.jobs.move(job_id, "FINISHED", result={"samples": 1, "best": None, "unreadable": [], **CLASSIFIED})
        built, _ = application(room, tmp_path)
        async with running(built, room.settings) as room.client:
            await room.settled("FINISHED")
            await room.serving()
    assert room.jobs.submissions == 1


async def test_the_models_service_may_be_away_between_the_row_and_the_listing(room: Room) -> None:
    room.catalog.lists_nothing = True
    await room.create()
    assert "online" not in room.catalog.known
    room.catalog.lists_nothing = False
    await room.serving()
    assert room.catalog.known["online"].owner == "alice"


def test_settings_name_the_variable(tmp_path: Path) -> None:
    environ = {"DLMESH_TRITON_HOME": str(tmp_path)}
    assert TritonSettings.from_environment(environ).installation is None
    external = TritonSettings.from_environment({**environ, "DLMESH_TRITON_URL": "http://triton:8000"})
    assert (external.url, external.grpc) == ("http://triton:8000", "triton:8001")
    assert not TritonSettings.from_environment({**environ, "DLMESH_TRITON": "0"}).enabled
    for name, text in (("DLMESH_TRITON_URL", "triton"), ("DLMESH_MAX_IMAGE_BYTES", "-1")):
        with pytest.raises(ValueError, match=name):
            TritonSettings.from_environment({**environ, name: text})


async def test_a_service_without_triton_starts_and_says_so(tmp_path: Path) -> None:
    for triton, words in ((TritonSettings(), "make setup"), (TritonSettings(enabled=False), "DLMESH_TRITON=0")):
        catalog = FakeCatalog()
        catalog.add("digits")
        settings = settings_for("inference", tmp_path)
        trainings = FakeTrainings("", "")
        built = build(settings, triton, catalog=catalog, trainings=trainings, jobs=FakeJobs())
        async with running(built, settings) as client:
            stub = client.stub(inference_pb2_grpc.InferenceServiceStub)
            with acting_as(ALICE):
                request = pb.CreateInferenceModelRequest(model_name="digits", training_name="first")
                code, message = await refused(stub.CreateInferenceModel(request))
        assert (code, words in message) == (grpc.StatusCode.UNAVAILABLE, True)
    assert not (tmp_path / "inference" / "triton.json").exists()


async def test_an_external_triton_is_published_and_not_started(tmp_path: Path) -> None:
    settings = settings_for("inference", tmp_path)
    triton = TritonSettings(url="http://triton:8000", grpc="triton:8001")
    async with running(build(settings, triton, jobs=FakeJobs()), settings):
        published = json.loads((tmp_path / "inference" / "triton.json").read_text())
    assert published == {"http": "http://triton:8000", "grpc": "triton:8001"}
