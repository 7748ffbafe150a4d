"""Unpacking what users upload: tar, gzip'd tar or zip, told apart by their content. Every byte of them is hostile.

What is not a plain file or folder inside of the upload is refused, and nothing is unpacked by names that were not
looked at. Limits hold for what comes out, whatever the archive says of itself.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from servicekit.errors import ServiceError, invalid
from servicekit.folders import sync_folder

FIELD = "file"
GZIP_MAGIC, ZIP_MAGICS = b"\x1f\x8b", (b"PK\x03\x04", b"PK\x05\x06")
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257
BLOCK_BYTES = 512
CHUNK_BYTES = 1024 * 1024
READ_AHEAD_BYTES = 64 * 1024
# What a tar may hold between two members: their headers, long names and attributes.
HEADER_BYTES = 1024 * 1024
# A ratio says nothing of what is small.
RATIO_FROM_BYTES = 64 * 1024 * 1024
MAX_NAME_BYTES = 255
_TAR_ERRORS = (tarfile.TarError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, EOFError)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, *_TAR_ERRORS)


@dataclass(frozen=True)
class ArchiveLimits:
    """What may come out of one archive; `depth` counts folders within folders, `ratio` bytes out for each byte in."""

    members: int = 50_000
    size_bytes: int = 20 * 1024**3
    ratio: int = 200
    depth: int = 50
    path_bytes: int = 1024


def unpack(archive: Path, target: Path, limits: ArchiveLimits = ArchiveLimits()) -> bool:
    """Unpack `archive` into the new folder `target`, durable but for its name; False when it is no archive.

    400 naming the member and what is wrong with it; `target` is gone then. OSError for a disk in trouble.
    """
    with archive.open("rb") as file:
        head = file.read(BLOCK_BYTES)
        file.seek(0)
        if head.startswith(ZIP_MAGICS):
            members: _Members = _ZipMembers(file, limits)
        elif is_tar(head):
            members = _TarMembers(_Source(file, file, limits))
        elif head.startswith(GZIP_MAGIC) and is_tar(_first_block(file)):
            members = _TarMembers(_Source(gzip.GzipFile(fileobj=file), file, limits))
        else:
            return False
        _write_all(members, target, limits)
    return True


def is_tar(head: bytes) -> bool:
    """Whether a file begins as a tar does: by its mark, or in the oldest form by the sum over its header."""
    if head[TAR_MAGIC_AT : TAR_MAGIC_AT + len(TAR_MAGIC)] == TAR_MAGIC:
        return True
    if len(head) < BLOCK_BYTES or not head[0]:
        return False
    try:
        return tarfile.nti(head[148:156]) in tarfile.calc_chksums(head)  # type: ignore[attr-defined]
    except tarfile.HeaderError:
        return False


def _first_block(file: BinaryIO) -> bytes:
    try:
        return gzip.GzipFile(fileobj=file).read(BLOCK_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""
    finally:
        file.seek(0)


@dataclass(frozen=True)
class _Member:
    name: str
    is_folder: bool
    is_executable: bool
    content: IO[bytes] | None


_Members = Iterator[_Member]


def _write_all(members: _Members, target: Path, limits: ArchiveLimits) -> None:
    target.mkdir()
    try:
        _Writer(target, limits).write(members)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


class _Writer:
    """Writes members below a folder that it made: every folder on the way is its own, none is a link."""

    def __init__(self, target: Path, limits: ArchiveLimits) -> None:
        self._target, self._limits = target, limits
        self._folders: set[tuple[str, ...]] = {()}
        self._files: set[tuple[str, ...]] = set()
        self._bytes = 0

    def write(self, members: _Members) -> None:
        for number, member in enumerate(members, 1):
            if number > self._limits.members:
                raise refused("archive", f"at most {self._limits.members} members")
            parts = checked_parts(member.name, self._limits)
            self._make_folders(parts if member.is_folder else parts[:-1], member.name)
            if member.is_folder:
                continue
            if not parts:
                raise refused(member.name, "a name for each file")
            if parts in self._files or parts in self._folders:
                raise refused(member.name, "each name once")
            self._files.add(parts)
            assert member.content is not None
            self._write_file(self._target.joinpath(*parts), member, member.content)
        for parts in sorted(self._folders, key=len, reverse=True):
            sync_folder(self._target.joinpath(*parts))

    def _make_folders(self, parts: tuple[str, ...], name: str) -> None:
        for depth in range(1, len(parts) + 1):
            folder = parts[:depth]
            if folder in self._folders:
                continue
            if folder in self._files:
                raise refused(name, f"{'/'.join(folder)} as a file or as a folder, not both")
            if len(self._folders) + len(self._files) > 2 * self._limits.members:
                raise refused(name, f"at most {2 * self._limits.members} files and folders")
            self._target.joinpath(*folder).mkdir()
            self._folders.add(folder)

    def _write_file(self, path: Path, member: _Member, content: IO[bytes]) -> None:
        with path.open("xb") as writer:
            while chunk := content.read(CHUNK_BYTES):
                self._bytes += len(chunk)
                if self._bytes > self._limits.size_bytes:
                    raise refused(member.name, f"at most {self._limits.size_bytes} bytes unpacked")
                writer.write(chunk)
            os.fchmod(writer.fileno(), 0o755 if member.is_executable else 0o644)
            writer.flush()
            os.fsync(writer.fileno())


def checked_parts(name: str, limits: ArchiveLimits = ArchiveLimits()) -> tuple[str, ...]:
    """The parts of a member's path; 400 when it leads out of the upload or is no name of a file."""
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise refused(name, "names in UTF-8")
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise refused(name, "names without control characters")
    if name.startswith("/"):
        raise refused(name, "relative paths")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise refused(name, "paths that stay inside of the upload")
    if len(parts) > limits.depth:
        raise refused(name, f"at most {limits.depth} folders within each other")
    if len(name.encode()) > limits.path_bytes or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        raise refused(name, f"paths of at most {limits.path_bytes} bytes, names of at most {MAX_NAME_BYTES}")
    return parts


def refused(member: str, allowed: str) -> ServiceError:
    """400 for the upload because of `member`."""
    error = invalid(f"{FIELD}, member", member, allowed, reason="ARCHIVE_REFUSED")
    error.metadata["field"] = FIELD
    return error


def _damaged(after: str, how: object) -> ServiceError:
    where = f"damaged or cut short behind {after!r}" if after else "damaged"
    return invalid(FIELD, f"({where}: {how})", "a whole archive", reason="ARCHIVE_REFUSED")


class _Source:
    """A tar's bytes in their order, with an eye on how many come out of how many, and on how long headers are."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, packed: BinaryIO, limits: ArchiveLimits) -> None:
        self._stream, self._packed, self._limits = stream, packed, limits
        self._total = 0
        self._recent: list[bytes] = []
        self._header_left = HEADER_BYTES
        self.member = ""
        self.in_header = True

    def begin_header(self) -> None:
        self.in_header, self._header_left = True, HEADER_BYTES

    def read(self, size: int) -> bytes:
        try:
            data = self._stream.read(size)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise _damaged(self.member, error) from error
        self._total += len(data)
        self._recent = [*self._recent[-2:], data]
        if self.in_header:
            self._header_left -= len(data)
            if self._header_left < 0:
                raise refused(self.member or "(first)", f"at most {HEADER_BYTES} bytes of header before the next one")
        if self._total > self._limits.size_bytes + self._limits.members * 4 * BLOCK_BYTES:
            raise refused(self.member, f"at most {self._limits.size_bytes} bytes unpacked")
        if self._total > RATIO_FROM_BYTES and self._total > self._limits.ratio * max(1, self._packed.tell()):
            raise refused(self.member, f"at most {self._limits.ratio} bytes out of each byte of the archive")
        return data

    def byte_range(self, offset: int, size: int) -> bytes:
        """Bytes that were read lately; empty when they are no longer there."""
        recent = b"".join(self._recent)
        start = offset - (self._total - len(recent))
        return recent[start : start + size] if start >= 0 else b""

    def drain(self) -> None:
        """Read to the end: what holds the archive together is checked there."""
        self.in_header = False
        while self.read(CHUNK_BYTES):
            pass


class _TarMembers(Iterator[_Member]):
    def __init__(self, source: _Source) -> None:
        self._source = source
        self._archive: Any = None

    def __next__(self) -> _Member:
        source = self._source
        source.begin_header()
        try:
            if self._archive is None:
                self._archive = tarfile.open(fileobj=source, mode="r|", bufsize=READ_AHEAD_BYTES)  # type: ignore[call-overload]  # noqa: SIM115
            member = self._archive.next()
            # It keeps every member otherwise.
            self._archive.members = []
        except _TAR_ERRORS as error:
            raise _damaged(source.member, error) from error
        if member is None:
            self._check_end()
            raise StopIteration
        source.member = member.name
        source.in_header = False
        _check_tar_member(member)
        content = self._archive.extractfile(member) if member.isreg() else None
        return _Member(
            member.name,
            member.isdir(),
            bool(member.mode & 0o111),
            None if content is None else _Guarded(content, source, member.size),  # type: ignore[arg-type]
        )

    def _check_end(self) -> None:
        """A tar ends with a block of zeros; the module takes any garbage for its end, too."""
        at = self._archive.offset
        if self._source.byte_range(at, BLOCK_BYTES) != bytes(BLOCK_BYTES):
            raise _damaged(self._source.member, "its end is missing")
        self._source.drain()


class _Guarded:
    """The content of a tar's member; whole, or an error."""

    def __init__(self, content: IO[bytes], source: _Source, size: int) -> None:
        self._content, self._source, self._left = content, source, size

    def read(self, size: int) -> bytes:
        try:
            data = self._content.read(size)
        except _TAR_ERRORS as error:
            raise _damaged(self._source.member, error) from error
        self._left -= len(data)
        if not data and self._left:
            raise _damaged(self._source.member, "unexpected end")
        return data


def _check_tar_member(member: tarfile.TarInfo) -> None:
    if member.issym() or member.islnk():
        kind = "a symbolic link" if member.issym() else "a hard link"
        raise refused(
            member.name, f"no links, and this is {kind} to {member.linkname!r}; pack what they lead to (tar -h)"
        )
    if member.isdev():
        kind = "a pipe" if member.isfifo() else "a device"
        raise refused(member.name, f"files and folders, and this is {kind}")
    if member.issparse():
        raise refused(member.name, "files without holes; pack it without --sparse")
    if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)):
        raise refused(member.name, f"files and folders, and this is of type {member.type!r}")
    if member.size < 0 or (member.isdir() and member.size):
        raise refused(member.name, "a size that makes sense")
    checked_parts(member.name)
    try:
        tarfile.data_filter(member, "/nowhere")
    except tarfile.FilterError as error:
        raise refused(member.name, f"paths that stay inside of the upload ({error})") from error


@contextlib.contextmanager
def _reading_zip(name: str) -> Iterator[None]:
    """400 for what the module makes of a damaged zip, at `name`."""
    try:
        yield
    except _ZIP_ERRORS as error:
        raise _damaged(name, error) from error
    except OSError as error:
        # Offsets before the begin of the file; other errors are the disk's.
        if error.errno != errno.EINVAL:
            raise
        raise _damaged(name, error) from error


class _ZipMembers(Iterator[_Member]):
    def __init__(self, file: BinaryIO, limits: ArchiveLimits) -> None:
        self._limits = limits
        self._packed_bytes = os.fstat(file.fileno()).st_size
        self._unpacked_bytes = 0
        self._check_directory(file)
        with _reading_zip(""):
            self._archive = zipfile.ZipFile(file)
        self._infos = iter(self._archive.infolist())

    def __next__(self) -> _Member:
        info = next(self._infos)
        name = info.orig_filename
        mode = info.external_attr >> 16
        if stat.S_ISLNK(mode):
            raise refused(name, "no links; pack what they lead to")
        if stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise refused(name, "files and folders")
        if info.flag_bits & 0x1:
            raise refused(name, "files without a password")
        # Which it says itself; what comes out is counted, too.
        self._unpacked_bytes += info.file_size
        if self._unpacked_bytes > max(RATIO_FROM_BYTES, self._limits.ratio * self._packed_bytes):
            raise refused(name, f"at most {self._limits.ratio} bytes out of each byte of the archive")
        if name.endswith("/"):
            return _Member(name, True, False, None)
        with _reading_zip(name):
            content = self._archive.open(info)
        return _Member(name, False, bool(mode & 0o111), _ZipContent(content, info))  # type: ignore[arg-type]

    def _check_directory(self, file: BinaryIO) -> None:
        """Its list of members is read whole."""
        with _reading_zip(""):
            end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        # Its size in bytes; a member takes 46 and its name.
        if end and end[5] > self._limits.members * (46 + self._limits.path_bytes):
            raise refused("archive", f"at most {self._limits.members} members")
        file.seek(0)


class _ZipContent:
    """The content of a zip's member; no more than it says of itself."""

    def __init__(self, content: IO[bytes], info: zipfile.ZipInfo) -> None:
        self._content, self._name = content, info.orig_filename

    def read(self, size: int) -> bytes:
        with _reading_zip(self._name):
            return self._content.read(size)
