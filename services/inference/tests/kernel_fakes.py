"""Pools of kernels that do what a test says, and the service of kernel models on a real database and disk."""

from __future__ import annotations

import asyncio
import functools
import io
import re
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.inference.v1 import kernels_pb2 as pb
from dlmesh.inference.v1 import kernels_pb2_grpc
from google.api.httpbody_pb2 import HttpBody
from inference_service.kernels.domain.pools import (
    KernelLaunch,
    KernelStatistics,
    KernelTask,
    NotStartedError,
    PoolPhase,
    PoolState,
    PoolStatistics,
)
from inference_service.kernels.settings import KernelModelSettings
from inference_service.kernels.wiring import build_kernels
from inference_service.storage import MIGRATIONS
from servicekit.database import Database
from servicekit.server import Application
from testkit.services import Client, running, settings_for
from triton_fixtures import until

KERNEL = "from redhareapi import Kernel\n"
BOUNDARY = "boundary-7"
Answer = Callable[[KernelTask], Awaitable[str]]


async def echo(task: KernelTask) -> str:
    return f"pong {task.input}"


class FakePools:
    """Pools are ready at once unless `phase` says otherwise; tasks are answered by `answer`."""

    def __init__(self) -> None:
        self.launches: dict[str, KernelLaunch] = {}
        self.phase = PoolState(PoolPhase.READY)
        self.answer: Answer = echo
        self.may_drain = asyncio.Event()
        self.may_drain.set()
        self.tasks: list[KernelTask] = []
        self.cancelled: list[str] = []
        self.ensured = 0

    async def ensure(self, launch: KernelLaunch) -> None:
        self.ensured += 1
        self.launches.setdefault(launch.uid, launch)

    async def drain(self, uid: str) -> None:
        await self.may_drain.wait()
        self.launches.pop(uid, None)

    def state(self, uid: str) -> PoolState:
        return self.phase if uid in self.launches else PoolState(PoolPhase.ABSENT)

    async def submit(self, uid: str, task: KernelTask) -> str:
        if uid not in self.launches:
            raise NotStartedError("no pool")
        self.tasks.append(task)
        try:
            return await self.answer(task)
        except asyncio.CancelledError:
            self.cancelled.append(task.id)
            raise

    def statistics(self, uid: str) -> PoolStatistics:
        if uid not in self.launches:
            return PoolStatistics()
        kernel = KernelStatistics("k1", "here", "busy", 5_000_000_000, 1, 3, 1)
        return PoolStatistics(2, 7, 1.6, 1e12, (kernel,))

    async def close(self) -> None:
        self.launches.clear()


@dataclass
class KernelModelRoom:
    """The running service."""

    client: Client
    pools: FakePools
    home: Path

    @property
    def stub(self) -> Any:
        return self.client.stub(kernels_pb2_grpc.KernelModelServiceStub)

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def kernels(self) -> Path:
        return self.home / "inference" / "kernels"

    def write(self, name: str = "pong", **files: str | bytes) -> Path:
        """A model's folder below the data root; `model_json="{}"` is its model.json."""
        folder = self.data / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in {"kernel_py": KERNEL, **files}.items():
            path = folder / ".".join(file.rsplit("_", 1))
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    async def publish(self, name: str = "pong", **fields: str) -> None:
        model = pb.RegisterKernelModelRequest(**{"model_path": "pong", **fields})
        await self.stub.PublishKernelModel(pb.PublishKernelModelRequest(model_name=name, model=model))

    async def upload(self, parts: Mapping[str, bytes], name: str = "pong", piece: int = 1 << 16) -> None:
        """Parts by name; `file=pong.tar` is a part `file` with that filename."""

        async def messages() -> AsyncIterator[pb.UploadKernelModelRequest]:
            body = multipart(parts)
            kind = f"multipart/form-data; boundary={BOUNDARY}"
            for at in range(0, len(body), piece):
                yield pb.UploadKernelModelRequest(
                    name=name, body=HttpBody(content_type=kind, data=body[at : at + piece])
                )

        await self.stub.UploadKernelModel(messages())

    async def model(self, name: str = "pong") -> Any:
        return await self.stub.GetKernelModel(pb.GetKernelModelRequest(name=name))

    async def reach(self, state: str, name: str = "pong") -> Any:
        async def reached() -> Any:
            found = await self.model(name)
            return found if found.state == state else None

        return await until(reached)

    async def start(self, name: str = "pong", state: str = "STARTED") -> Any:
        await self.stub.StartKernelModel(pb.StartKernelModelRequest(name=name))
        return await self.reach(state, name)

    async def stop(self, name: str = "pong", state: str = "STOPPED") -> Any:
        await self.stub.StopKernelModel(pb.StopKernelModelRequest(name=name))
        return await self.reach(state, name)

    async def invoke(self, text: str | bytes = "ping", name: str = "pong") -> Any:
        data = text if isinstance(text, bytes) else text.encode()
        return await self.stub.InvokeKernelModel(pb.InvokeKernelModelRequest(name=name, body=HttpBody(data=data)))


@asynccontextmanager
async def kernel_model_room(
    home: Path, database_url: str | None = None, pools: FakePools | None = None, **limits: Any
) -> AsyncIterator[KernelModelRoom]:
    """The service of kernel models alone, with pools that are played."""
    settings = settings_for("inference", home, database_url=database_url)
    database, pools = Database(settings.database_url, "inference"), pools or FakePools()
    parts = build_kernels(settings, database, KernelModelSettings(**limits), pools)
    application = Application(
        name="inference",
        servicers=parts.servicers,
        loops=parts.loops,
        databases=[database],
        startup=[functools.partial(database.migrate, MIGRATIONS)],
        shutdown=parts.shutdown,
    )
    async with running(application, settings) as client:
        yield KernelModelRoom(client, pools, home)


def multipart(parts: Mapping[str, bytes]) -> bytes:
    pieces = []
    for key, data in parts.items():
        name, _, filename = key.partition("=")
        shown = f'; filename="{filename}"' if filename else ""
        pieces.append(f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{shown}\r\n\r\n'.encode() + data)
    return b"\r\n".join([*pieces, f"--{BOUNDARY}--\r\n".encode()])


def packed(files: Mapping[str, bytes | str], mode: Any = "w:gz") -> bytes:
    """A tar of files by name; `-> target` as content is a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str) and content.startswith("-> "):
                member.type, member.linkname = tarfile.SYMTYPE, content[3:]
                archive.addfile(member)
                continue
            data = content.encode() if isinstance(content, str) else content
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


async def refused(work: Any, code: grpc.StatusCode, words: str) -> Any:
    """The error that `work` ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await work
    assert caught.value.code() is code, caught.value.details()
    assert re.search(words, caught.value.details() or "", re.DOTALL), caught.value.details()
    return caught.value


def trailing(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    return dict(error.trailing_metadata())


async def until_true(condition: Callable[[], bool]) -> None:
    """Poll until it holds."""

    async def answer() -> bool:
        return condition()

    await until(answer)
