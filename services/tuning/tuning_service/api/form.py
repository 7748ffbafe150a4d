"""The multipart forms of the tuning service: what is in them, however clients write them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servicekit.errors import invalid
from servicekit.multipart import Part, receive_multipart

from tuning_service.domain.fields import MAX_DATA_BYTES, read_tree
from tuning_service.usecases.start_hyper_search import Upload


@dataclass(frozen=True)
class Form:
    """The object in the part `data`, and the file."""

    data: dict[str, Any]
    file: Upload | None


async def receive_form(requests: AsyncIterator[Any], spool: Path, max_file_bytes: int) -> Form:
    """Receive a form below `spool`; 400 when it has no `data` that can be read. `data` may come twice, and as a file;
    the file's part may have any name."""
    parts = await receive_multipart(
        _bounded(requests, max_file_bytes),
        lambda request: request.body,
        spool,
        max_part_bytes=max_file_bytes,
        max_bytes_of={"data": MAX_DATA_BYTES},
    )
    texts = [part for part in parts if part.name == "data" and part.size]
    if not texts:
        raise invalid("data", "", "a part with an object in JSON, or a Python dict literal")
    data = await asyncio.to_thread(lambda: read_tree("data", texts[0].text()))
    return Form(data, await asyncio.to_thread(_file, parts, spool))


async def _bounded(requests: AsyncIterator[Any], max_file_bytes: int) -> AsyncIterator[Any]:
    """400 for more than a file that is sent twice."""
    received = 0
    async for request in requests:
        received += len(request.body.data)
        if received > 2 * max_file_bytes + 16 * 1024 * 1024:
            raise invalid("file", f"(more than {received} bytes)", f"at most {max_file_bytes} bytes")
        yield request


def _file(parts: list[Part], spool: Path) -> Upload | None:
    others = [part for part in parts if part.name != "data" and part.size]
    part = next((part for part in others if part.name == "file"), others[0] if others else None)
    if part is None:
        return None
    path = part.path
    if path is None:
        path = spool / "part"
        path.write_bytes(part.read())
    sent_as = part.filename if part.filename is not None else "" if part.name == "file" else part.name
    return Upload(path, re.split(r"[/\\]", sent_as)[-1])
