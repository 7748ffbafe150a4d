"""Archives that users upload: what is unpacked, and every way to misuse one."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servicekit.archives import ArchiveLimits, unpack
from servicekit.errors import Code, ServiceError

SMALL = ArchiveLimits(members=20, size_bytes=100_000, ratio=50, depth=5, path_bytes=200)


def member(name: str | bytes, content: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(os.fsdecode(name))
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def tar_of(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w", format: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode, format=format, errors="surrogateescape") as archive:  # type: ignore[call-overload]
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def zip_of(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return target.getvalue()


def unpacked(tmp_path: Path, data: bytes, limits: ArchiveLimits = SMALL) -> dict[str, bytes] | None:
    """Files by path; None where it is no archive."""
    upload, target = tmp_path / "upload", tmp_path / "code"
    upload.write_bytes(data)
    if not unpack(upload, target, limits):
        assert not target.exists()
        return None
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}


FILES = {"main.py": b"print(1)", "src/net.py": b"", "data/deep/er/x.bin": bytes(9000)}


@pytest.mark.parametrize(
    "pack",
    [
        lambda files: tar_of(*(member(name, content) for name, content in files.items())),
        lambda files: tar_of(*(member(f"./{name}", content) for name, content in files.items()), mode="w:gz"),
        lambda files: tar_of(*(member(name, c) for name, c in files.items()), format=tarfile.GNU_FORMAT),
        lambda files: tar_of(*(member(name, c) for name, c in files.items()), format=tarfile.USTAR_FORMAT),
        lambda files: zip_of(*files.items()),
    ],
)
def test_archives_are_told_apart_by_their_content(tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    assert unpacked(tmp_path, pack(FILES)) == FILES


def test_modes_are_plain_and_programs_stay_executable(tmp_path: Path) -> None:
    folder = member("d", b"", type=tarfile.DIRTYPE, mode=0o000)
    data = tar_of(folder, member("d/run.sh", mode=0o6755), member("d/closed", mode=0o000), member("ü/漢 字.py"))
    assert unpacked(tmp_path, data) is not None
    modes = {path.name: oct(path.stat().st_mode & 0o7777) for path in (tmp_path / "code").rglob("*")}
    assert modes == {"d": "0o755", "run.sh": "0o755", "closed": "0o644", "ü": "0o755", "漢 字.py": "0o644"}


@pytest.mark.parametrize(
    "data", [b"", b"print(1)\n", b"\x1f\x8b", gzip.compress(b"a,b\n1,2\n"), b"P" * 600, b"\0" * 10]
)
def test_what_is_no_archive_is_a_file(tmp_path: Path, data: bytes) -> None:
    assert unpacked(tmp_path, data) is None


def test_an_old_tar_has_no_mark(tmp_path: Path) -> None:
    data = bytearray(tar_of(member("main.py", b"print(1)"), format=tarfile.USTAR_FORMAT))
    data[257:265] = bytes(8)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert unpacked(tmp_path, bytes(data)) == {"main.py": b"print(1)"}


def link(name: str, to: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, b"", type=kind, linkname=to)


def zip_link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    return info


def sparse() -> bytes:
    info, content = member("hole", b"x" * 512)
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(1 << 40)}
    info.pax_headers |= {"GNU.sparse.map": "0,512", "GNU.sparse.numblocks": "1", "GNU.sparse.name": "hole"}
    return tar_of((info, content))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (tar_of(member("../x")), "'../x'.*stay inside"),
        (tar_of(member("a/../../x")), "stay inside"),
        (tar_of(member("a/../x")), "stay inside"),
        (tar_of(member("/etc/x")), "'/etc/x'.*relative"),
        (tar_of(member("//x")), "relative"),
        (tar_of(link("l", "main.py", tarfile.SYMTYPE)), "'l'.*a symbolic link to 'main.py'"),
        (tar_of(link("l", "/etc/passwd", tarfile.SYMTYPE), member("l/x")), "a symbolic link to '/etc/passwd'"),
        (tar_of(member("a"), link("l", "a", tarfile.LNKTYPE)), "a hard link to 'a'"),
        (tar_of(link("l", "../../secret", tarfile.LNKTYPE)), "a hard link"),
        (tar_of(member("f", b"", type=tarfile.FIFOTYPE)), "a pipe"),
        (tar_of(member("c", b"", type=tarfile.CHRTYPE)), "a device"),
        (tar_of(member("b", b"", type=tarfile.BLKTYPE)), "a device"),
        (tar_of(member("odd", b"", type=b"Z")), "of type"),
        (sparse(), "without holes"),
        (tar_of(member("a"), member("./a")), "'./a'.*each name once"),
        (tar_of(member("a"), member("a/b")), "a as a file or as a folder"),
        (tar_of(member("a/b"), member("a")), "each name once"),
        (tar_of(member(".", b"x")), "a name for each file"),
        (tar_of(member(b"caf\xe9.py"), format=tarfile.GNU_FORMAT), "UTF-8"),
        (tar_of(member("a\nb")), "control characters"),
        (tar_of(member("a/b/c/d/e/f")), "at most 5 folders"),
        (tar_of(member("n" * 250)), "at most 200 bytes"),
        (tar_of(*(member(f"f{number}") for number in range(30))), "at most 20 members"),
        (tar_of(member("big", bytes(200_000))), "at most 100000 bytes"),
        (tar_of(member("a", b"x" * 3000))[:1500], "cut short"),
        (tar_of(member("a", b"x" * 30))[:1024], "end is missing"),
        (tar_of(member("a", b"x" * 600), mode="w:gz")[:-20], "damaged"),
        (tar_of(member("a", b"x"), mode="w:gz")[:-5] + b"wrong", "damaged"),
        (tar_of(member("a"), member("b"))[:1024] + b"garbage!" * 200, "end is missing"),
        (zip_of(("../x", b"x")), "stay inside"),
        (zip_of(("/x", b"x")), "relative"),
        (zip_of((zip_link(), b"/etc/passwd")), "no links"),
        (zip_of(("big", bytes(200_000))), "at most 100000 bytes"),
        (zip_of(*((f"f{number}", b"") for number in range(30))), "at most 20 members"),
        (zip_of(("a", b"x" * 3000))[:-30], "damaged"),
    ],
    # Archives hold the time at which they were made.
    ids=lambda value: value if isinstance(value, str) else "archive",
)
def test_what_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(ServiceError, match=says) as caught:
        unpacked(tmp_path, data)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.metadata["field"] == "file"
    assert [path.name for path in tmp_path.iterdir()] == ["upload"]


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    # 300 MB of zeros in 300 KB.
    data = gzip.compress(tar_of(member("zeros", bytes(300_000_000))), 9)
    assert len(data) < 400_000
    limits = ArchiveLimits()
    with pytest.raises(ServiceError, match="at most 200 bytes out of each byte"):
        unpacked(tmp_path, data, limits)
    # A zip says itself how much it holds.
    bomb = zip_of(("zeros", bytes(300_000_000)))
    with pytest.raises(ServiceError, match="at most 200 bytes out of each byte"):
        unpacked(tmp_path, bomb, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["upload"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_headers_are_not_read_into_memory(tmp_path: Path, mode: str) -> None:
    data = tar_of(member("p", b"", pax_headers={"comment": "y" * 9_000_000}), mode=mode)
    with pytest.raises(ServiceError, match="at most 1048576 bytes of header"):
        unpacked(tmp_path, data, ArchiveLimits())


def test_a_zip_that_lies_about_its_size(tmp_path: Path) -> None:
    data = bytearray(zip_of(("a", bytes(90_000))))
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (10).to_bytes(4, "little")
    with pytest.raises(ServiceError, match="damaged"):
        unpacked(tmp_path, bytes(data))


def test_a_zip_whose_member_has_no_name(tmp_path: Path) -> None:
    data = bytearray(zip_of(("a", b"x")))
    at = data.index(b"PK\x01\x02")
    data[at + 46] = 0
    with pytest.raises(ServiceError, match="damaged"):
        unpacked(tmp_path, bytes(data))


def test_a_zip_whose_members_lie_before_it(tmp_path: Path) -> None:
    data = bytearray(zip_of(("a", b"x")))
    at = data.index(b"PK\x05\x06") + 16
    data[at : at + 4] = (0xFFFFFF0).to_bytes(4, "little")
    with pytest.raises(ServiceError, match="damaged"):
        unpacked(tmp_path, bytes(data))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.integers(0, 2047), st.integers(0, 255), st.booleans())
def test_one_wrong_byte_is_an_archive_or_a_refusal(tmp_path: Path, at: int, value: int, is_zip: bool) -> None:
    files = [("a/main.py", b"print(1)" * 50), ("b", b"")]
    data = bytearray(zip_of(*files) if is_zip else tar_of(*(member(*each) for each in files)))
    data[at % len(data)] = value
    target = tmp_path / "code"
    upload = tmp_path / "upload"
    upload.write_bytes(data)
    try:
        is_archive = unpack(upload, target, SMALL)
    except ServiceError:
        is_archive = False
    assert target.exists() == is_archive
    if is_archive:
        assert all(path.resolve().is_relative_to(target) for path in target.rglob("*"))
        for path in sorted(target.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        target.rmdir()
