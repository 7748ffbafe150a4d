"""Models with a kernel are published over gRPC: what is copied, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import zipfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.inference.v1 import kernels_pb2 as pb
from google.api.httpbody_pb2 import HttpBody
from inference_service.kernels.api import servicer
from inference_service.kernels.storage import folders
from kernel_fakes import BOUNDARY, KERNEL, KernelModelRoom, kernel_model_room, packed, refused, trailing, until_true
from servicekit.archives import ArchiveLimits
from testkit.services import ALICE, acting_as, collect

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[KernelModelRoom]:
    async with kernel_model_room(tmp_path, max_task_bytes=1000, max_model_bytes=2_000_000) as made:
        made.write()
        with acting_as(ALICE):
            yield made


async def test_a_folder_of_the_server_is_copied(room: KernelModelRoom) -> None:
    manifest = {"name": "other", "tag": 7, "attributes": [{"key": "a", "value": "1"}], "weight_path": "w.bin"}
    folder = room.write(model_json=json.dumps(manifest), README_md="# Pong\n", w_bin=b"weights")
    await room.publish(
        type="t", runtime="dlipy3", attributes='{"a": "2", "b": "3"}', environments='[{"name": "E", "value": "f"}]'
    )
    (folder / "kernel.py").write_text("changed")
    model = await room.model()
    assert (model.state, model.creator, model.tag, model.version) == ("STOPPED", "alice", "7", "7")
    assert [(one.key, one.value) for one in model.attributes] == [("a", "2"), ("b", "3")]
    assert [(one.name, one.value) for one in model.environments] == [("E", "f")]
    assert model.reference_environments == model.environments
    assert (model.type, model.runtime, model.reference_kernel_type) == ("t", "dlipy3", "dlipy3")
    assert (model.kernel_path, model.reference_kernel_path) == ("kernel.py", "kernel.py")
    assert (model.instance_min, model.instance_max, model.reference_umask) == (1, 2, "077")
    assert model.service_uri == "http://127.0.0.1:9280/dlim/v1/inference/pong"
    assert Path(model.model_path, "kernel.py").read_text() == KERNEL
    assert Path(model.weight_path).read_bytes() == b"weights"
    assert model.size == sum(path.stat().st_size for path in Path(model.model_path).iterdir())
    readme = await room.stub.GetKernelModelReadme(pb.GetKernelModelReadmeRequest(name="pong"))
    assert readme.readme == "# Pong\n"
    assert [path.name for path in room.kernels.iterdir()] == [Path(model.model_path).parent.name]


async def test_a_body_without_a_name_in_the_path(room: KernelModelRoom) -> None:
    request = pb.RegisterKernelModelRequest(name="pong", model_path="pong", kernel_path=f"{room.data}/pong/kernel.py")
    await room.stub.RegisterKernelModel(request)
    assert (await room.model()).kernel_path == "kernel.py"
    await refused(room.stub.RegisterKernelModel(request), grpc.StatusCode.ALREADY_EXISTS, "pong")
    request.name = "new"
    await refused(room.stub.RegisterKernelModel(request), INVALID, "name: 'new'")
    both = pb.PublishKernelModelRequest(model_name="ping", model=pb.RegisterKernelModelRequest(name="pong"))
    await refused(room.stub.PublishKernelModel(both), INVALID, "^name: 'pong'.*ping")
    request.name = ""
    await refused(room.stub.RegisterKernelModel(request), INVALID, "^name: ''")


async def test_weights_from_elsewhere_are_copied_too(room: KernelModelRoom) -> None:
    (room.data / "weights").mkdir()
    (room.data / "weights" / "w.bin").write_bytes(b"far")
    await room.publish(weight_path="weights/w.bin")
    (room.data / "weights" / "w.bin").write_bytes(b"changed")
    model = await room.model()
    assert Path(model.weight_path).read_bytes() == b"far"
    assert model.size == len(KERNEL) + 3
    change = pb.KernelModel(weight_path="weights")
    await room.stub.UpdateKernelModel(pb.UpdateKernelModelRequest(name="pong", model=change))
    later = await room.model()
    assert (Path(later.weight_path) / "w.bin").read_bytes() == b"changed"
    # What is replaced is gone.
    assert not Path(model.weight_path).exists()
    change = pb.KernelModel(weight_path="kernel.py")
    await room.stub.UpdateKernelModel(pb.UpdateKernelModelRequest(name="pong", model=change))
    last = await room.model()
    assert last.weight_path == f"{last.model_path}/kernel.py"
    assert last.size == len(KERNEL)
    assert list(Path(last.model_path).parent.glob("weights/*")) == []


async def test_a_kernel_from_elsewhere_is_copied_too(room: KernelModelRoom) -> None:
    (room.data / "kernels").mkdir()
    (room.data / "kernels" / "far.py").write_text("# far\n")
    (room.data / "kernels" / "kernel.py").write_text("# another\n")
    await room.publish(kernel_path="kernels/far.py")
    model = await room.model()
    assert model.kernel_path == "far.py"
    assert Path(model.model_path, "far.py").read_text() == "# far\n"
    # What the folder has itself is never replaced.
    await refused(room.publish("second", kernel_path="kernels/kernel.py"), INVALID, "^edi_py: 'kernels/kernel.py'")


async def test_a_client_that_goes_away_leaves_nothing_half_made(room: KernelModelRoom) -> None:
    messages: asyncio.Queue[pb.UploadKernelModelRequest] = asyncio.Queue()

    async def sent() -> AsyncIterator[pb.UploadKernelModelRequest]:
        while True:
            yield await messages.get()

    call = room.stub.UploadKernelModel(sent())
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    begin = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="kernel.py"; filename="kernel.py"\r\n\r\n'
    messages.put_nowait(
        pb.UploadKernelModelRequest(name="pong", body=HttpBody(content_type=kind, data=begin.encode() + bytes(100_000)))
    )
    await until_true(lambda: room.kernels.exists() and list(room.kernels.rglob("part-*")) != [])
    call.cancel()
    await until_true(lambda: list(room.kernels.iterdir()) == [])
    await refused(room.model(), grpc.StatusCode.NOT_FOUND, "pong")


async def test_a_client_that_goes_away_while_weights_are_copied_leaves_none(
    room: KernelModelRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    (room.data / "weights").mkdir()
    (room.data / "weights" / "w.bin").write_bytes(b"far")
    await room.publish()
    before = await room.model()
    folder = Path(before.model_path).parent
    is_begun, may_go_on = asyncio.Event(), threading.Event()
    loop, copy = asyncio.get_running_loop(), folders.copy_plain_folder

    def slow_copy(*arguments: Any) -> None:
        copy(*arguments)
        loop.call_soon_threadsafe(is_begun.set)
        assert may_go_on.wait(120)

    monkeypatch.setattr(folders, "copy_plain_folder", slow_copy)
    change = pb.KernelModel(weight_path="weights")
    call = room.stub.UpdateKernelModel(pb.UpdateKernelModelRequest(name="pong", model=change))
    await is_begun.wait()
    assert list(folder.glob("weights/*")) != []
    call.cancel()
    may_go_on.set()
    await until_true(lambda: list(folder.glob("weights/*")) == [])
    assert await room.model() == before


async def test_archives(room: KernelModelRoom) -> None:
    files = {"pong/kernel.py": KERNEL, "pong/model.json": '{"tag": "packed"}', "pong/deep/w.bin": b"w"}
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    for name, data in (("tar", packed(files, "w")), ("gz", packed(files)), ("zip", buffer.getvalue())):
        await room.upload({"file": data, "csrftoken": b"x"}, name, piece=100)
        model = await room.model(name)
        assert model.tag == "packed"
        assert Path(model.model_path, "deep", "w.bin").read_bytes() == b"w"
        assert Path(model.model_path, "kernel.py").read_text() == KERNEL
    await refused(room.upload({"file": packed(files, "w:xz")}, "xz"), INVALID, "^file: .*tar")


async def test_files_as_parts(room: KernelModelRoom) -> None:
    big = os.urandom(200_000)
    await room.upload(
        {"kernel.py": KERNEL.encode(), "x=model.json": b'{"weight_path": "data/w.bin"}', "y=data/w.bin": big}
    )
    model = await room.model()
    assert Path(model.weight_path).read_bytes() == big
    await room.upload({"file=kernel.py": KERNEL.encode()}, "second")
    assert (await room.model("second")).kernel_path == "kernel.py"


NO_MODELS: list[tuple[dict[str, bytes], str]] = [
    ({}, "^file: ''"),
    ({"file": b"junk"}, "^file: 'file'.*tar"),
    ({"file=pong.tar": b"junk"}, "^file: 'pong.tar'.*tar"),
    ({"file": packed({"a.py": KERNEL})}, "model.json, kernel_path: 'kernel.py'.*'a.py'"),
    ({"file": packed({"kernel.py/x": "folder"})}, "kernel_path"),
    ({"file": packed({"kernel.py": KERNEL, "../out": "x"})}, "file, member"),
    ({"file": packed({"kernel.py": "-> /etc/passwd"})}, "symbolic link"),
    ({"file": packed({"kernel.py": KERNEL}, "w")[:520]}, "damaged"),
    ({"a=../kernel.py": b"x", "b=kernel.py": b"x"}, "stay inside"),
    ({"a=kernel.py": b"x", "b=kernel.py": b"x"}, "each name once"),
    ({"a=kernel.py": b"x", "b=kernel.py/c": b"x"}, "each name once"),
    ({"a=kernel.py": b"x", "model.json": b"{"}, "model.json"),
    ({"a=kernel.py": b"x", "model.json": b'{"kernel_path": "../../x.py"}'}, "model.json, kernel_path"),
    ({"a=kernel.py": b"x", "model.json": b'{"kernel_path": "k\\u0000.py"}'}, "model.json, kernel_path"),
    ({"a=kernel.py": b"x", "model.json": b'{"weight_path": "/etc/passwd"}'}, "model.json, weight_path"),
    ({"a=kernel.py": b"x", "model.json": b'{"weight_path": "none.bin"}'}, "model.json, weight_path"),
    ({"a=kernel.py": b"x", "model.json": b'{"runtime": "dlicpp"}'}, "model.json, runtime"),
    ({"a=kernel.py": b"x", "model.json": b'{"mk_instance_min": 3, "mk_instance_max": 2}'}, "mk_instance_max"),
]


async def test_uploads_that_are_no_model_leave_nothing(room: KernelModelRoom) -> None:
    for parts, words in NO_MODELS:
        await refused(room.upload(parts), INVALID, words)
        assert list(room.kernels.iterdir()) == []
    assert await collect(room.stub.ListKernelModels(pb.ListKernelModelsRequest())) == []
    # The name is not taken.
    await room.publish()


async def test_uploads_that_are_too_large(room: KernelModelRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    error = await refused(
        room.upload({"kernel.py": os.urandom(2_100_000)}), grpc.StatusCode.RESOURCE_EXHAUSTED, "2000000 bytes"
    )
    assert trailing(error)["x-http-code"] == "413"
    assert ArchiveLimits().members == servicer.MAX_PARTS
    monkeypatch.setattr(servicer, "MAX_PARTS", 2)
    many = {name: KERNEL.encode() for name in ("kernel.py", "b.py", "c.py")}
    error = await refused(room.upload(many), grpc.StatusCode.RESOURCE_EXHAUSTED, "2 parts")
    assert trailing(error)["x-http-code"] == "413"
    bomb = packed({"kernel.py": KERNEL, "zeros": bytes(5_000_000)})
    assert len(bomb) < 20_000
    await refused(room.upload({"file": bomb}), INVALID, "2000000 bytes")
    assert list(room.kernels.iterdir()) == []


NO_FOLDERS: list[tuple[dict[str, str], str]] = [
    ({"model_path": ""}, "^modelPath"),
    ({"model_path": "none"}, "^modelPath"),
    ({"model_path": "/etc"}, "^modelPath"),
    ({"model_path": "pong/kernel.py"}, "^modelPath"),
    ({"model_path": "linked"}, "^modelPath: 'link'.*links"),
    ({"model_path": "piped"}, "^modelPath: 'pipe'"),
    ({"kernel_path": "none.py"}, "^edi_py: 'none.py'.*kernel.py"),
    # From the copy, which lies below the platform's home, this leads to the program and to the secret.
    ({"kernel_path": "../../../../data/pong/kernel.py"}, "^edi_py"),
    ({"weight_path": "../../../../secret"}, "^weightPath"),
    ({"kernel_path": "/etc/passwd"}, "^edi_py"),
    ({"kernel_path": "x" * 5000}, "^edi_py"),
    ({"weight_path": "none"}, "^weightPath"),
    ({"weight_path": "../../secret"}, "^weightPath"),
    ({"attributes": "a=b"}, "^attribute"),
    ({"environments": '{"LD_PRELOAD": "x"}'}, "^mcenv"),
    ({"runtime": "dlicpp"}, "^runtime"),
    ({"type": "a\nb"}, "^type"),
]


async def test_folders_that_are_no_model(room: KernelModelRoom) -> None:
    (room.home / "secret").write_text("of the platform")
    (room.write("linked") / "link").symlink_to("/etc/passwd")
    os.mkfifo(room.write("piped") / "pipe")
    for fields, words in NO_FOLDERS:
        await refused(room.publish(**fields), INVALID, words)
        assert not room.kernels.exists() or list(room.kernels.iterdir()) == []
