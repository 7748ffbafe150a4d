"""The whole service over gRPC on a real database and real files; only its peers are played."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from dataset_fakes import FakeJobs, FakeModels, write_images
from datasets_service.wiring import build
from dlmesh.datasets.v1 import datasets_pb2 as pb
from dlmesh.datasets.v1 import datasets_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from servicekit.errors import invalid
from servicekit.identity import acting_as
from servicekit.settings import ServiceSettings
from servicekit.times import utc_now
from testkit.services import ADMIN, ALICE, BOB, collect, running, settings_for


@dataclass
class Room:
    """The running service and its played peers."""

    stub: Any
    settings: ServiceSettings
    jobs: FakeJobs
    models: FakeModels

    @property
    def job_id(self) -> str:
        return next(reversed(self.jobs.facts))

    async def detail(self, name: str = "digits") -> Any:
        return await self.stub.GetDataset(pb.GetDatasetRequest(name=name))

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(10):
            while not await condition():
                await asyncio.sleep(0.02)

    async def until_status(self, status: str, name: str = "digits") -> Any:
        async def reached() -> bool:
            return bool((await self.detail(name)).status == status)

        await self.until(reached)
        return await self.detail(name)

    async def until_submitted(self, count: int = 1) -> None:
        async def reached() -> bool:
            return len(self.jobs.requests) == count

        await self.until(reached)

    async def run_job(self) -> None:
        """Do what the engine does with the submitted job."""
        command = self.jobs.requests[self.job_id].command
        assert command[0] == "python"
        process = await asyncio.create_subprocess_exec(sys.executable, *command[1:], env=dict(os.environ))
        assert await process.wait() == 0
        self.jobs.move(self.job_id, "FINISHED", started_at=utc_now(), ended_at=utc_now())

    def folders(self) -> list[str]:
        folder = self.settings.home / "datasets"
        shown = [path for path in folder.glob("*") if path.name not in ("importing", "known")]
        return sorted(str(path.relative_to(folder)) for path in shown) + [
            str(path.relative_to(folder)) for path in folder.glob("importing/*")
        ]


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    return settings_for("datasets", tmp_path)


@pytest.fixture
async def room(settings: ServiceSettings) -> AsyncIterator[Room]:
    write_images(settings.home / "data" / "digits", {"0": 10, "1": 10})
    jobs, models = FakeJobs(), FakeModels()
    async with running(build(settings, jobs=jobs, models=models), settings) as client:
        with acting_as(ALICE):
            yield Room(client.stub(datasets_pb2_grpc.DatasetServiceStub), settings, jobs, models)


def creation(images: dict[str, Any] | None = None, **changes: Any) -> pb.CreateDatasetRequest:
    options = {
        "train_image_path": "digits",
        "color_mode": "gray",
        "width": 8,
        "height": 8,
        "validation_percentage": 10,
        "test_percentage": 10,
        **(images or {}),
    }
    fields = {
        "name": "digits",
        "backend": "lmdb",
        "source_type": "ImageForClassification",
        "instance_group_id": "local",
        **changes,
    }
    return pb.CreateDatasetRequest(image_options=pb.ImageOptions(**options), **fields)


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(caught.value)
    assert status is not None
    assert status.details[0].Unpack(info)
    return caught.value.code(), caught.value.details() or "", dict(info.metadata)


async def test_the_life_of_a_dataset(room: Room) -> None:
    await room.stub.CreateDataset(creation())
    await room.until_submitted()
    submitted = await room.detail()
    assert (submitted.status, submitted.owner, submitted.instance_group_name) == ("SUBMITTED", "alice", "local")
    assert submitted.image_options.color_mode == "Gray"
    assert submitted.train_path == ""
    room.jobs.move(room.job_id, "RUNNING", done=5, total=20, started_at=utc_now(), driver_id="driver-1")
    running_detail = await room.until_status("RUNNING")
    assert running_detail.status_message == "imported 5 of 20 images"
    assert running_detail.driver_id == "driver-1"
    assert (await refusal(room.stub.DeleteDataset(pb.DeleteDatasetRequest(name="digits"))))[0].name == "ABORTED"

    await room.run_job()
    detail = await room.until_status("FINISHED")
    assert [list(pair) for pair in detail.train_labels] == [["0", "8"], ["1", "8"]]
    assert [list(pair) for pair in detail.validation_labels] == [["0", "1"], ["1", "1"]]
    assert [list(pair) for pair in detail.test_labels] == [["0", "1"], ["1", "1"]]
    assert (Path(detail.train_path) / "data.mdb").exists()
    assert (Path(detail.train_path).parent / "labels.txt").read_text() == "0\n1\n"
    assert Path(detail.mean_file_path).exists()
    assert detail.size_bytes > 0
    assert len(detail.content_hash) == 64
    uid = Path(detail.train_path).parent.name
    assert room.folders() == [uid]
    assert [one.name for one in await collect(room.stub.ListDatasets(pb.ListDatasetsRequest()))] == ["digits"]
    await room.stub.StopDataset(pb.StopDatasetRequest(name="digits"))
    assert (await room.detail()).status == "FINISHED"

    room.models.by_dataset["digits"] = ["net"]
    code, message, _ = await refusal(room.stub.DeleteDataset(pb.DeleteDatasetRequest(name="digits")))
    assert (code.name, message) == ("ABORTED", "dataset 'digits' is in use by model net")
    room.models.by_dataset.clear()
    job_id, known = room.job_id, room.settings.home / "datasets" / "known"
    assert len(list(known.iterdir())) == 1
    await room.stub.DeleteDataset(pb.DeleteDatasetRequest(name="digits"))
    assert (await refusal(room.detail()))[0].name == "NOT_FOUND"

    async def removed() -> bool:
        return not room.folders() and room.jobs.deleted == [job_id] and not list(known.iterdir())

    await room.until(removed)
    assert len(list((room.settings.home / "data" / "digits").rglob("*.png"))) == 20


async def test_names_that_are_not_utf8_are_told_with_escapes(room: Room) -> None:
    data = room.settings.home / "data"
    write_images(data / "digits", {"0": 20, "1": 20})
    odd = Path(os.fsdecode(b"caf\xe9"))
    (data / "digits" / "0" / odd.with_suffix(".png")).write_bytes(b"no image")
    (data / odd).mkdir()
    (data / "link").symlink_to(data / odd)
    await room.stub.CreateDataset(creation())
    await room.until_submitted()
    await room.run_job()
    detail = await room.until_status("FINISHED")
    assert detail.status_message.startswith("1 images could not be read: 0/caf\\udce9.png (UnidentifiedImageError")
    linked = creation({"train_image_path": "link"}, name="linked")
    _, _, metadata = await refusal(room.stub.CreateDataset(linked))
    assert "names that are not UTF-8" in metadata["allowed"]
    (data / "digits" / odd).mkdir()
    _, message, _ = await refusal(room.stub.CreateDataset(creation(name="labels")))
    assert "caf\\udce9" in message


async def test_others_neither_see_nor_touch_it(room: Room) -> None:
    await room.stub.CreateDataset(creation())
    with acting_as(BOB):
        assert await collect(room.stub.ListDatasets(pb.ListDatasetsRequest())) == []
        for call in (
            room.stub.GetDataset(pb.GetDatasetRequest(name="digits")),
            room.stub.StopDataset(pb.StopDatasetRequest(name="digits")),
            room.stub.DeleteDataset(pb.DeleteDatasetRequest(name="digits")),
        ):
            assert (await refusal(call))[0].name == "PERMISSION_DENIED"
        assert (await refusal(room.stub.CreateDataset(creation())))[0].name == "ALREADY_EXISTS"
    with acting_as(ADMIN):
        assert (await room.detail()).owner == "alice"


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"name": ""}, "name", "letters"),
    ({"name": "../up"}, "name", "letters"),
    ({"source_type": ""}, "datasourcetype", "IMAGEFORCLASSIFICATION"),
    ({"source_type": "PICTURES"}, "datasourcetype", "IMAGEFORCLASSIFICATION"),
    ({"backend": ""}, "dbbackend", "LMDB"),
    ({"backend": "Oracle"}, "dbbackend", "TFRecords"),
    ({"instance_group_id": "moon"}, "sigid", "local"),
    ({"instance_group_id": ""}, "sigid", "local"),
    ({"backend": "CSV"}, "dbbackend", "LMDB, TFRecords"),
    ({"shards": -1}, "shards", "0 (one) to 10000"),
    ({"images": {"color_mode": "sepia"}}, "imagedetail.imagetype", "Color, Gray"),
    ({"images": {"width": 0}}, "imagedetail.width", "1 to 4096"),
    ({"images": {"width": -4}}, "imagedetail.width", "1 to 4096"),
    ({"images": {"height": 4097}}, "imagedetail.height", "1 to 4096"),
    ({"images": {"resize_mode": "stretch"}}, "imagedetail.resizetransformation", "squash, crop, fill, half crop"),
    ({"images": {"validation_percentage": -1}}, "imagedetail.valpercentage", "0 to 100"),
    ({"images": {"test_percentage": 101}}, "imagedetail.testpercentage", "0 to 100"),
    ({"images": {"validation_percentage": 60, "test_percentage": 40}}, "imagedetail.valpercentage", "less than 100"),
    ({"images": {"split_algorithm": "bootstrap"}}, "imagedetail.splitalgorithm", "hold-out"),
    ({"images": {"split_algorithm": "k-fold 1/5"}}, "imagedetail.splitalgorithm", "validates on a fold"),
    ({"images": {"split_algorithm": "by-name"}}, "imagedetail.splitalgorithm", "reads the file names"),
    ({"mean_file_path": "nowhere.npy"}, "meanfilepath", "an existing path"),
    ({"mean_file_path": "digits/0/0000.png"}, "meanfilepath", ".npy or .binaryproto"),
    ({"images": {"train_list_path": "list.txt"}}, "imagedetail.traintextpath", "isusingtext"),
    ({"images": {"uses_text_lists": True}}, "imagedetail.traintextpath", "an existing path"),
    ({"images": {"uses_text_lists": True, "train_list_path": "digits"}}, "imagedetail.traintextpath", "a file"),
    ({"images": {"train_image_path": "empty"}}, "imagedetail.trainimagepath", "'nothing' holds none"),
    ({"images": {"train_image_path": ""}}, "imagedetail.trainimagepath", "an existing path"),
    ({"images": {"train_image_path": "nowhere"}}, "imagedetail.trainimagepath", "an existing path"),
    ({"images": {"train_image_path": "/etc"}}, "imagedetail.trainimagepath", "an existing path"),
    ({"images": {"train_image_path": "digits/../.."}}, "imagedetail.trainimagepath", "an existing path"),
    ({"images": {"train_image_path": "digits/0/0000.png"}}, "imagedetail.trainimagepath", "a folder"),
    ({"images": {"train_image_path": "digits/0"}}, "imagedetail.trainimagepath", "2 at least; 0 were found"),
    ({"images": {"train_image_path": ""}, "train_path": "nowhere"}, "trainpath", "an existing path"),
    ({"train_path": "elsewhere"}, "trainpath", "nothing, or the same"),
    ({"images": {"validation_image_path": "digits"}}, "imagedetail.valpercentage", "0 when"),
    ({"images": {"test_image_path": "nowhere", "test_percentage": 0}}, "imagedetail.testimagepath", "an existing path"),
    ({"images": {"test_image_path": "other", "test_percentage": 0}}, "imagedetail.testimagepath", "training: z"),
    ({"images": {"test_image_path": "digits/0", "test_percentage": 0}}, "imagedetail.testimagepath", "none was found"),
]


@pytest.mark.parametrize(("changes", "field", "allowed"), WRONG)
async def test_a_wrong_field_is_named_with_what_is_allowed(
    room: Room, changes: dict[str, Any], field: str, allowed: str
) -> None:
    write_images(room.settings.home / "data" / "other", {"0": 1, "z": 1})
    write_images(room.settings.home / "data" / "empty", {"0": 1, "nothing": 0})
    code, message, metadata = await refusal(room.stub.CreateDataset(creation(**changes)))
    assert code.name == "INVALID_ARGUMENT"
    assert message.startswith(f"{field}: ")
    assert metadata["field"] == field
    assert allowed in metadata["allowed"]
    assert await collect(room.stub.ListDatasets(pb.ListDatasetsRequest())) == []


async def test_what_only_other_backends_have_is_passed_over(room: Room) -> None:
    await room.stub.CreateDataset(creation(shards=4, by_class=True, plugin="reader.py"))
    detail = await room.detail()
    assert (detail.shards, detail.by_class, detail.plugin) == (1, False, "")
    await room.stub.CreateDataset(creation(name="records", backend="TFRECORDS", shards=4, by_class=True))
    detail = await room.detail("records")
    assert (detail.backend, detail.shards, detail.by_class, detail.plugin) == ("TFRecords", 4, True, "")


async def test_a_stop_ends_the_job_and_leaves_no_files(room: Room) -> None:
    await room.stub.CreateDataset(creation())
    await room.until_submitted()
    assert room.folders() != []
    await room.stub.StopDataset(pb.StopDatasetRequest(name="digits"))

    async def told() -> bool:
        return room.job_id in room.jobs.stopped

    await room.until(told)
    room.jobs.move(room.job_id, "KILLED", reason="stopped")
    await room.until_status("STOPPED")
    assert room.folders() == []


async def test_a_stop_before_the_job_exists(room: Room) -> None:
    room.jobs.is_away = True
    await room.stub.CreateDataset(creation())
    await room.stub.StopDataset(pb.StopDatasetRequest(name="digits"))
    room.jobs.is_away = False
    detail = await room.until_status("STOPPED")
    assert detail.status_message == "stopped before it started"
    assert room.folders() == []


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"reason": "exit code 1", "refusal": "too few classes"}, "too few classes"),
        ({"reason": "exit code 1", "log_tail": "No space left on device"}, "exit code 1\nNo space left on device"),
    ],
)
async def test_a_failed_job_fails_the_dataset(room: Room, facts: dict[str, Any], message: str) -> None:
    await room.stub.CreateDataset(creation())
    await room.until_submitted()
    room.jobs.move(room.job_id, "ERROR", **facts)
    assert (await room.until_status("FAILED")).status_message == message
    assert room.folders() == []
    await room.stub.DeleteDataset(pb.DeleteDatasetRequest(name="digits"))
    await room.stub.CreateDataset(creation())


async def test_a_job_that_can_never_run_fails_the_dataset(room: Room) -> None:
    room.jobs.refusal = invalid("ranks", 1, "0")
    await room.stub.CreateDataset(creation())
    assert "ranks" in (await room.until_status("FAILED")).status_message


async def test_a_job_that_is_lost_or_published_nothing_fails_the_dataset(room: Room) -> None:
    await room.stub.CreateDataset(creation())
    await room.until_submitted()
    room.jobs.move(room.job_id, "FINISHED")
    assert "without publishing" in (await room.until_status("FAILED")).status_message
    await room.stub.CreateDataset(creation(name="second"))
    await room.until_submitted(2)
    room.jobs.facts.clear()
    assert "no longer knows" in (await room.until_status("FAILED", "second")).status_message


async def test_an_import_goes_on_after_a_restart_of_the_service(settings: ServiceSettings) -> None:
    write_images(settings.home / "data" / "digits", {"0": 10, "1": 10})
    jobs, models = FakeJobs(), FakeModels()
    jobs.is_away = True
    with acting_as(ALICE):
        async with running(build(settings, jobs=jobs, models=models), settings) as client:
            stub = client.stub(datasets_pb2_grpc.DatasetServiceStub)
            await stub.CreateDataset(creation())
        jobs.is_away = False
        async with running(build(settings, jobs=jobs, models=models), settings) as client:
            room = Room(client.stub(datasets_pb2_grpc.DatasetServiceStub), settings, jobs, models)
            await room.until_submitted()
            await room.run_job()
            await room.until_status("FINISHED")
            jobs.is_away = True
            await room.stub.DeleteDataset(pb.DeleteDatasetRequest(name="digits"))
        jobs.is_away = False
        async with running(build(settings, jobs=jobs, models=models), settings):

            async def removed() -> bool:
                return len(jobs.deleted) == 1 and not room.folders()

            await room.until(removed)
