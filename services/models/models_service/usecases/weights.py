"""Weight files: uploaded whole, kept by owner, found again by name."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from servicekit.errors import already_exists, invalid
from servicekit.folders import sync_folder
from servicekit.identity import current_identity
from servicekit.names import check_name
from servicekit.paths import confined
from servicekit.times import utc_now
from servicekit.weight_paths import WeightPaths

from models_service.usecases.ports import Catalog

# An upload that takes longer than this is taken for abandoned.
UPLOAD_TIME = timedelta(hours=12)
_HASH_BYTES = 1024 * 1024

Receive = Callable[[Path], Awaitable[tuple[str | None, Path]]]


class Weights:
    """Uploads are kept as `<filename>` in the folder of their owner."""

    def __init__(self, catalog: Catalog, paths: WeightPaths, home: Path, wake: Callable[[], None]) -> None:
        self._catalog = catalog
        self._paths = paths
        self._incoming = home / "weights" / ".incoming"
        self._wake = wake

    async def upload(self, receive: Receive) -> Path:
        """Keep what `receive` spools below the folder it is given: it returns (filename or None, spooled file).

        400 for a file without content, 409 when the caller has a file of that name. A file without a name is called
        `weights-<12 hex of its SHA-256>`.
        """
        spool = self._incoming / uuid4().hex
        await self._catalog.reserve(spool, utc_now() + UPLOAD_TIME)
        try:
            filename, path = await receive(spool)
            return await asyncio.to_thread(self._keep, filename, path, self._paths.uploads_of(current_identity().user))
        finally:
            await self._catalog.release(spool)
            self._wake()

    def _keep(self, filename: str | None, path: Path, folder: Path) -> Path:
        if not path.stat().st_size:
            raise invalid("file", filename or "", "a file with content; this one has no bytes")
        name = check_name("file", filename, ()) if filename else f"weights-{_digest(path)[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        target = confined(folder, name, "file")
        with path.open("rb") as file:
            os.fsync(file.fileno())
        try:
            # A link fails when the name is taken, so of two uploads at once one wins and the other is told.
            os.link(path, target)
        except FileExistsError as error:
            raise already_exists("weight file", name, can_be_deleted=False) from error
        sync_folder(folder)
        return target


def choose_name(part_name: str, filename: str | None) -> str | None:
    """The name of an uploaded file: its filename without folders, else its part's name unless that says nothing."""
    if filename:
        base = filename.replace("\\", "/").rsplit("/", 1)[-1]
        if not base or base in {".", ".."}:
            raise invalid("file", filename, "a file name")
        return base
    return None if part_name in {"", "file"} else part_name


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
