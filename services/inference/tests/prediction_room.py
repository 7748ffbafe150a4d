"""The whole service in a test's process, over gRPC on a real database and disk; its peers and Triton are played."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.inference.v1 import inference_pb2 as pb
from dlmesh.inference.v1 import inference_pb2_grpc
from google.api.httpbody_pb2 import HttpBody
from inference_fakes import FakeCatalog, FakeJobs, FakeServer, FakeTrainings
from inference_service.settings import TritonSettings
from inference_service.storage.specs import PredictionSpec
from inference_service.wiring import build
from inference_service.worker.manifest import read_manifest
from inference_service.worker.result_files import ResultFiles
from servicekit.server import Application
from servicekit.settings import ServiceSettings
from testkit.services import Client, settings_for
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


def application(room: Room | None, tmp_path: Path, **limits: int) -> tuple[Application, Room]:
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
        TritonSettings(max_image_bytes=MAX_IMAGE_BYTES, **limits),
        catalog=room.catalog,
        trainings=room.trainings,
        jobs=room.jobs,
        server=room.server,
    )
    return built, room
