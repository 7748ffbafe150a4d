"""Multipart uploads of any size in bounded memory: parts go to disk while they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from servicekit.errors import Code, ServiceError, invalid, too_large

Request = TypeVar("Request")

# What one part, and all parts of an upload, may hold in memory; what is more goes to disk.
MEMORY_BYTES = 64 * 1024
MAX_HELD_BYTES = 1024 * 1024
MAX_HEADER_BYTES = 16 * 1024
# What is kept of the headers of all parts.
MAX_NAME_BYTES = 4 * 1024 * 1024
MAX_PARTS = 10_000


@dataclass
class Part:
    """One part of an upload. Its bytes lie in `path` when it had a filename, was large or came after much, else in
    `value`."""

    name: str
    filename: str | None = None
    content_type: str = ""
    path: Path | None = None
    value: bytes | None = b""
    size: int = 0
    _file: IO[bytes] | None = field(default=None, repr=False)

    def text(self) -> str:
        """The part as UTF-8 text; 400 naming the part when it is not."""
        try:
            return self.read().decode()
        except UnicodeDecodeError as error:
            raise invalid(self.name, "(binary)", "UTF-8 text") from error

    def read(self) -> bytes:
        """The bytes of a small part."""
        if self.path is None:
            return self.value or b""
        return self.path.read_bytes()


async def receive_multipart(
    requests: AsyncIterator[Request],
    get_body: Callable[[Request], Any],
    spool_dir: Path,
    *,
    max_part_bytes: int | None = None,
    max_bytes_of: Mapping[str, int] | None = None,
    max_bytes: int | None = None,
    max_parts: int | None = None,
    first: Request | None = None,
) -> list[Part]:
    """Read a streamed multipart/form-data body, spooling files below `spool_dir` (created; the caller removes it).

    `get_body` picks the `google.api.HttpBody` out of a request message; the content type with the boundary comes with
    the first. `first` is a message the caller has read already. Parts without filename or content type are accepted.
    400 when the body is not multipart, is cut short, has too many parts or too long headers, or as soon as a part is
    larger than `max_part_bytes`, or those of its name in `max_bytes_of`. 413 as soon as the body is larger than
    `max_bytes`, or has more parts than `max_parts` where that is given.
    """
    received = 0
    receiver: _Receiver | None = None
    try:
        async for request in _chain(first, requests):
            body = get_body(request)
            if receiver is None:
                if not body.content_type and not body.data:
                    continue
                await asyncio.to_thread(spool_dir.mkdir, parents=True, exist_ok=True)
                receiver = _Receiver(body.content_type, spool_dir, max_part_bytes, max_bytes_of or {}, max_parts)
            if body.data:
                received += len(body.data)
                if max_bytes is not None and received > max_bytes:
                    raise too_large("body", f"an upload of more than {max_bytes} bytes", f"at most {max_bytes} bytes")
                await asyncio.to_thread(receiver.write, body.data)
        if receiver is None:
            raise invalid("body", "", "a multipart/form-data body", reason="NOT_MULTIPART")
        return await asyncio.to_thread(receiver.finish)
    finally:
        if receiver is not None:
            receiver.close()


async def _chain(first: Request | None, requests: AsyncIterator[Request]) -> AsyncIterator[Request]:
    if first is not None:
        yield first
    async for request in requests:
        yield request


class _Receiver:
    """Callbacks of the multipart parser."""

    def __init__(
        self,
        content_type: str,
        spool_dir: Path,
        max_part_bytes: int | None,
        max_bytes_of: Mapping[str, int],
        max_parts: int | None,
    ) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise invalid("Content-Type", content_type, "multipart/form-data with a boundary", reason="NOT_MULTIPART")
        self._spool_dir = spool_dir
        self._max_part_bytes, self._max_bytes_of = max_part_bytes, max_bytes_of
        self._max_parts = max_parts
        self._parts: list[Part] = []
        self._held_bytes = 0
        self._name_bytes = 0
        self._headers: dict[str, bytes] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._part: Part | None = None
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def write(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise invalid("body", f"({error})", "a well-formed multipart/form-data body") from error

    def finish(self) -> list[Part]:
        if not self._ended:
            raise invalid("body", "(cut short)", "a complete multipart/form-data body")
        return self._parts

    def close(self) -> None:
        if self._part is not None and self._part._file is not None:
            self._part._file.close()

    def _on_part_begin(self) -> None:
        if self._max_parts is not None and len(self._parts) >= self._max_parts:
            raise too_large("body", f"more than {self._max_parts} parts", f"at most {self._max_parts} parts")
        if self._max_parts is None and len(self._parts) >= MAX_PARTS:
            raise invalid("body", f"more than {MAX_PARTS} parts", f"at most {MAX_PARTS} parts")
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._append(self._header_name, data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._append(self._header_value, data[start:end])

    def _append(self, target: bytearray, piece: bytes) -> None:
        target += piece
        if len(target) > MAX_HEADER_BYTES:
            raise invalid("body", "(a part's header)", f"part headers of at most {MAX_HEADER_BYTES} bytes")

    def _on_header_end(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        content_type = self._headers.get("content-type", b"")
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        name, filename = options.get(b"name", b""), options.get(b"filename")
        self._name_bytes += len(name) + len(filename or b"") + len(content_type)
        if self._name_bytes > MAX_NAME_BYTES:
            raise invalid(
                "body", "(names of parts)", f"names and content types of at most {MAX_NAME_BYTES} bytes in all"
            )
        self._part = Part(
            name=name.decode("utf-8", "replace"),
            filename=None if filename is None else filename.decode("utf-8", "replace"),
            content_type=content_type.decode("latin-1"),
        )
        if self._part.filename is not None:
            self._spill(self._part)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        assert part is not None
        part.size += end - start
        most = self._max_bytes_of.get(part.name, self._max_part_bytes)
        if most is not None and part.size > most:
            raise ServiceError(
                Code.INVALID_ARGUMENT,
                "PART_TOO_LARGE",
                f"{part.name or part.filename}: more than the allowed {most} bytes",
                {"field": part.name, "allowed": f"at most {most} bytes"},
            )
        if part._file is None and (part.size > MEMORY_BYTES or self._held_bytes + part.size > MAX_HELD_BYTES):
            self._spill(part)
        if part._file is not None:
            part._file.write(memoryview(data)[start:end])
        else:
            part.value = (part.value or b"") + data[start:end]

    def _spill(self, part: Part) -> None:
        # The name on disk is ours: what the client calls the file is only ever shown.
        part.path = self._spool_dir / f"part-{len(self._parts)}-{secrets.token_hex(4)}"
        part._file = part.path.open("xb")
        part._file.write(part.value or b"")
        part.value = None

    def _on_part_end(self) -> None:
        part = self._part
        assert part is not None
        if part._file is not None:
            part._file.close()
            part._file = None
        else:
            self._held_bytes += part.size
        self._parts.append(part)
        self._part = None

    def _on_end(self) -> None:
        self._ended = True


def discard(parts: list[Part]) -> None:
    """Remove what was spooled for `parts`."""
    for part in parts:
        if part.path is not None:
            with contextlib.suppress(FileNotFoundError):
                part.path.unlink()
