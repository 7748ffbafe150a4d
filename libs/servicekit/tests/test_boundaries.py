"""What stands between hostile input and the platform: names, paths, uploads, identities, secrets."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from servicekit.errors import Code, ServiceError
from servicekit.folders import remove_folder
from servicekit.identity import Identity, acting_as, headers_for, identity_from_headers, job_token
from servicekit.multipart import receive_multipart
from servicekit.names import check_name
from servicekit.paths import DataRoots, confined
from servicekit.settings import ServiceSettings, read_or_create_secret


@pytest.mark.parametrize("name", ["a", "digits-1", "A.b_c", "x" * 128])
def test_good_names(name: str) -> None:
    assert check_name("name", name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a..b", "-a", "a/b", "a b", "a\n", "ä", "x" * 129, "files"])
def test_bad_names_are_refused_by_field(name: str) -> None:
    with pytest.raises(ServiceError) as caught:
        check_name("modelName", name, reserved=("files",))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.metadata["field"] == "modelName"


def test_paths_inside_the_roots_resolve(tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    roots = DataRoots([tmp_path / "data"])
    assert roots.resolve("trainpath", "images") == tmp_path / "data" / "images"
    assert roots.resolve("trainpath", str(tmp_path / "data" / "images")) == tmp_path / "data" / "images"


@pytest.mark.parametrize(
    "text", ["", "..", "../data2", "/etc/passwd", "images/../../secret", "a\0b", "link", "missing"]
)
def test_paths_outside_the_roots_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data2").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "data2")
    with pytest.raises(ServiceError) as caught:
        DataRoots([tmp_path / "data"]).resolve("trainpath", text)
    assert "trainpath" in caught.value.message
    assert str(tmp_path / "data") in caught.value.message


@pytest.mark.parametrize("relative", ["", ".", "..", "../x", "/x", "a/../..", "out/x", "a\0"])
def test_confined_paths_stay_inside(tmp_path: Path, relative: str) -> None:
    base = tmp_path / "model"
    base.mkdir()
    (base / "out").symlink_to(tmp_path)
    with pytest.raises(ServiceError):
        confined(base, relative, "filename")
    assert confined(base, "sub/main.py", "filename") == base / "sub" / "main.py"


def test_paths_longer_than_any_files_are_not_looked_up(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for path in ("a/" * 50_000, "../" * 20_000 + "x", "x" * 4097):
        for look_up in (DataRoots([tmp_path / "data"]).resolve, lambda field, text: confined(tmp_path, text, field)):
            with pytest.raises(ServiceError, match=r"^trainpath: .*; allowed: a path of at most 4096 characters$"):
                look_up("trainpath", path)


@pytest.mark.parametrize("open_files", [None, 400])
def test_folders_of_any_depth_are_removed(tmp_path: Path, open_files: int | None) -> None:
    doomed, kept = tmp_path / "doomed", tmp_path / "kept"
    kept.mkdir()
    doomed.mkdir()
    descriptor = os.open(doomed, os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("a", dir_fd=descriptor)
        os.symlink(kept, "link", dir_fd=descriptor)
        inner = os.open("a", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files or limits[0], limits[1]))
    try:
        remove_folder(doomed)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


async def test_a_stream_may_be_broken_off_by_another_task() -> None:
    async def stream() -> AsyncIterator[int]:
        with acting_as(Identity("alice")):
            yield 1
            yield 2

    answers = stream()
    assert await asyncio.create_task(answers.__anext__()) == 1  # type: ignore[arg-type]
    await answers.aclose()  # type: ignore[attr-defined]


def test_one_secret_for_many_starting_processes(tmp_path: Path) -> None:
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda: seen.append(read_or_create_secret(tmp_path / "secret"))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 1
    assert len(seen[0]) >= 32
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_secret_that_was_opened_to_others_is_closed_again(tmp_path: Path) -> None:
    secret = read_or_create_secret(tmp_path / "secret")
    (tmp_path / "secret").chmod(0o644)
    assert read_or_create_secret(tmp_path / "secret") == secret
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_settings_have_defaults_and_read_the_environment(tmp_path: Path) -> None:
    environ = {"DLMESH_HOME": str(tmp_path), "DLMESH_MODELS_ADDRESS": "127.0.0.1:7777"}
    settings = ServiceSettings.from_environment("datasets", environ)
    assert settings.data_roots == (tmp_path / "data",)
    assert settings.peers["models"] == "127.0.0.1:7777"
    assert settings.database_url == f"sqlite:///{tmp_path}/db/datasets.sqlite"


def test_identity_round_trips_through_headers() -> None:
    for identity in (Identity("ann"), Identity("root", is_admin=True), Identity.service("datasets")):
        assert identity_from_headers(dict(headers_for(identity, "s", "datasets")), "s") == identity


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-dlmesh-user": "Admin", "x-dlmesh-admin": "1"},
        {"x-dlmesh-secret": "wrong", "x-dlmesh-user": "Admin"},
        {"x-dlmesh-secret": "s"},
        {"x-dlmesh-job": "j1", "x-dlmesh-job-token": job_token("s", "j2")},
        {"x-dlmesh-job": "j1", "x-dlmesh-secret": "s", "x-dlmesh-user": "Admin"},
    ],
)
def test_forged_identities_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ServiceError) as caught:
        identity_from_headers(headers, "s")
    assert caught.value.code is Code.UNAUTHENTICATED


def test_a_worker_speaks_for_its_job_only() -> None:
    worker = identity_from_headers({"x-dlmesh-job": "j1", "x-dlmesh-job-token": job_token("s", "j1")}, "s")
    worker.require_job("j1")
    for refused in (lambda: worker.require_job("j2"), worker.require_service, lambda: worker.require_admin("do it")):
        with pytest.raises(ServiceError) as caught:
            refused()
        assert caught.value.code is Code.PERMISSION_DENIED
    assert not worker.may_access("job:j1")


@dataclass
class Body:
    data: bytes
    content_type: str = ""


async def chunks(body: bytes, size: int, content_type: str = "multipart/form-data; boundary=XX") -> AsyncIterator[Body]:
    for start in range(0, max(len(body), 1), size):
        yield Body(body[start : start + size], content_type if start == 0 else "")


def form(*parts: tuple[str, bytes]) -> bytes:
    return b"".join(b"--XX\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts) + b"--XX--\r\n"


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_multipart_with_and_without_filenames(tmp_path: Path, size: int) -> None:
    body = form(
        ('Content-Disposition: form-data; name="file"', b"\x00\xffraw\r\n--X"),
        ('Content-Disposition: form-data; name="image0"; filename="../a.png"\r\nContent-Type: image/png', b"png"),
        ('Content-Disposition: form-data; name="data"', b"{}"),
    )
    parts = await receive_multipart(chunks(body, size), lambda message: message, tmp_path / "spool")
    assert [(part.name, part.filename, part.read()) for part in parts] == [
        ("file", None, b"\x00\xffraw\r\n--X"),
        ("image0", "../a.png", b"png"),
        ("data", None, b"{}"),
    ]
    assert parts[1].path is not None
    assert parts[1].path.parent == tmp_path / "spool"


async def test_large_uploads_take_bounded_memory(tmp_path: Path) -> None:
    megabyte = b"x" * 1024 * 1024

    async def upload() -> AsyncIterator[Body]:
        yield Body(b'--XX\r\nContent-Disposition: form-data; name="file"\r\n\r\n', "multipart/form-data; boundary=XX")
        for _ in range(50):
            yield Body(megabyte)
        yield Body(b"\r\n--XX--\r\n")

    tracemalloc.start()
    (part,) = await receive_multipart(upload(), lambda message: message, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert part.size == 50 * len(megabyte)
    assert peak < 8 * len(megabyte)


async def test_many_parts_without_filenames_take_bounded_memory(tmp_path: Path) -> None:
    value = bytes(range(256)) * 256

    async def upload() -> AsyncIterator[Body]:
        for _ in range(400):
            yield Body(
                form(("Content-Disposition: form-data; name=image", value))[:-8], "multipart/form-data; boundary=XX"
            )
        yield Body(b"--XX--\r\n")

    tracemalloc.start()
    parts = await receive_multipart(upload(), lambda message: message, tmp_path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < peak < 3 * 1024 * 1024
    # What came first is at hand, the rest is on disk; nobody is refused.
    assert [part.path is None for part in parts] == [True] * 16 + [False] * 384
    assert all(part.read() == value for part in parts)


async def test_the_names_of_parts_are_bounded_together(tmp_path: Path) -> None:
    def many(count: int) -> bytes:
        return form(*[("Content-Disposition: form-data; name=" + "n" * 4000, b"")] * count)

    parts = await receive_multipart(chunks(many(1048), 10**6), lambda message: message, tmp_path)
    assert {part.name for part in parts} == {"n" * 4000}
    with pytest.raises(ServiceError, match=r"^body: '\(names of parts\)' .* at most 4194304 bytes in all$"):
        await receive_multipart(chunks(many(1049), 10**6), lambda message: message, tmp_path)


@pytest.mark.parametrize(
    ("body", "content_type", "limit"),
    [
        (b"", "", None),
        (b"{}", "application/json", None),
        (b"hello", "multipart/form-data; boundary=XX", None),
        (form(("Content-Disposition: form-data; name=a", b"1"))[:-6], "multipart/form-data; boundary=XX", None),
        (form(("Content-Disposition: form-data; name=a", b"12345")), "multipart/form-data; boundary=XX", 4),
        (form(("X: " + "y" * 20000, b"1")), "multipart/form-data; boundary=XX", None),
    ],
)
async def test_bad_uploads_are_refused(tmp_path: Path, body: bytes, content_type: str, limit: int | None) -> None:
    with pytest.raises(ServiceError) as caught:
        await receive_multipart(
            chunks(body, 1000, content_type), lambda message: message, tmp_path, max_part_bytes=limit
        )
    assert caught.value.code is Code.INVALID_ARGUMENT
