"""Triton's model repository: `inference/repository/<name>/<version>/`, each version whole or not there."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any
from uuid import uuid4

from dlmesh_sdk.served import Facts, Tensor

from inference_service.backends.base import ExportError, Source, read_facts
from inference_service.backends.registry import BACKENDS, choose_backend
from inference_service.domain.models import InferenceModel
from inference_service.usecases.ports import ExportRefusedError

# Which inference model an entry belongs to: a later one of the same name is exported anew.
OWNER_FILE = ".dlmesh-uid"
CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
# Triton loads a version again when a file of it is newer than before.
CHANGED_FILE = ".dlmesh-changed"
# Of what is on its way out.
REMOVED = ".removed"
POLICY = "version_policy {{ specific {{ versions: [ {} ] }} }}\n"


class DiskRepository:
    """`ports.Repository` below the platform's home."""

    def __init__(self, home: Path) -> None:
        self._root = home / "inference" / "repository"
        # Beside it, on the same disk: Triton lists every folder of the repository as a model.
        self._drafts = home / "inference" / "drafts"
        self._rooms = home / "inference" / "rooms"
        # Whose an entry is holds until it is taken away.
        self._swaps = threading.Lock()

    @property
    def frameworks(self) -> Sequence[str]:
        return tuple(BACKENDS)

    def supports(self, framework: str) -> bool:
        return framework in BACKENDS

    async def refusal(self, framework: str, code_path: str, checkpoints_path: str) -> str:
        source = Source("", Path(code_path), Path(checkpoints_path))
        try:
            await asyncio.to_thread(choose_backend, framework, source)
        except ExportError as error:
            return str(error)
        return ""

    async def publish(self, model: InferenceModel, number: int = 1) -> None:
        try:
            await asyncio.to_thread(self._publish, model, number)
        except ExportError as error:
            raise ExportRefusedError(str(error)) from error

    async def offer(self, name: str, numbers: Sequence[int]) -> None:
        await asyncio.to_thread(self._offer, self._root / name, numbers)

    async def differs(self, name: str, checkpoints_path: str) -> str:
        return await asyncio.to_thread(self._differs, self._root / name, Path(checkpoints_path))

    async def touch(self, name: str, numbers: Sequence[int]) -> None:
        for number in numbers:
            folder = self._root / name / str(number)
            if folder.is_dir():
                (folder / CHANGED_FILE).write_text(str(time.time_ns()))

    async def versions(self, name: str) -> set[int]:
        return await asyncio.to_thread(lambda: {int(folder.name) for folder in (self._root / name).glob("[0-9]*")})

    async def remove_versions(self, name: str, uid: str, numbers: Collection[int]) -> None:
        for number in numbers:
            await asyncio.to_thread(self._remove, self._root / name, uid, str(number))

    async def remove(self, name: str, uid: str) -> None:
        await asyncio.to_thread(self._remove, self._root / name, uid)

    async def entries(self) -> dict[str, str]:
        return await asyncio.to_thread(self._entries)

    async def drafts(self) -> set[str]:
        return await asyncio.to_thread(lambda: {folder.name for folder in _within(self._drafts)})

    async def rooms(self) -> dict[str, str]:
        return await asyncio.to_thread(
            # What has no "@" is of no model: Triton's own temporary files.
            lambda: {each.name: each.name.partition("@")[0] for each in _within(self._rooms) if "@" in each.name}
        )

    async def sweep(self, drafts: Collection[str], rooms: Collection[str]) -> None:
        for folder in (*(self._drafts / name for name in drafts), *(self._rooms / name for name in rooms)):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _entries(self) -> dict[str, str]:
        return {folder.name: _owner(folder) for folder in _within(self._root)}

    def _publish(self, model: InferenceModel, number: int) -> None:
        entry = self._root / model.name
        if entry.is_dir() and (owner := _owner(entry)) != model.uid:
            self._remove(entry, owner)
        if (entry / str(number)).is_dir():
            return
        version = model.version(number)
        draft = self._drafts / model.uid
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        source = Source(model.name, Path(version.code_path), Path(version.checkpoints_path))
        try:
            choose_backend(version.framework, source).write(source, draft)
            # Of its own for each version: the entry's is that of the newest which Triton shall load.
            shutil.copy2(draft / CONFIG_FILE, draft / "1" / CONFIG_FILE)
            _forbid_bytecode(draft / "1")
            if entry.is_dir():
                _require_same_interface(draft, entry)
                (draft / "1").rename(entry / str(number))
                return
            if number != 1:
                (draft / "1").rename(draft / str(number))
            self._offer(draft, [number])
            (draft / OWNER_FILE).write_text(model.uid)
            self._root.mkdir(parents=True, exist_ok=True)
            draft.rename(entry)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _offer(self, entry: Path, numbers: Sequence[int]) -> None:
        own = entry / str(max(numbers)) / CONFIG_FILE
        lines = (own if own.is_file() else entry / CONFIG_FILE).read_text().splitlines(keepends=True)
        text = "".join(line for line in lines if not line.startswith("version_policy"))
        text += POLICY.format(", ".join(str(number) for number in sorted(numbers)))
        if (entry / CONFIG_FILE).read_text() != text:
            draft = entry / f".{CONFIG_FILE}.draft"
            draft.write_text(text)
            draft.replace(entry / CONFIG_FILE)

    def _differs(self, entry: Path, checkpoints: Path) -> str:
        versions = sorted(int(folder.name) for folder in entry.glob("[0-9]*")) if entry.is_dir() else []
        if not versions:
            return ""
        try:
            served = read_facts(entry / str(versions[-1]) / "bundle")
            trained = read_facts(checkpoints)
        except ExportError:
            # Programs that describe themselves nowhere: their export shows it.
            return ""
        return "; ".join(
            f"{field.name}: {_shown(getattr(trained, field.name))}, of the model {_shown(getattr(served, field.name))}"
            for field in fields(Facts)
            if getattr(trained, field.name) != getattr(served, field.name)
        )

    def _remove(self, entry: Path, uid: str, version: str = "") -> None:
        # Renamed first: half of an entry or of a version must not be taken for one.
        self._drafts.mkdir(parents=True, exist_ok=True)
        gone = self._drafts / f"{entry.name}-{version}-{uuid4().hex}{REMOVED}"
        with self._swaps:
            if _owner(entry) != uid:
                return
            # Somebody else may have been first.
            with suppress(FileNotFoundError):
                (entry / version).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _within(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _owner(entry: Path) -> str:
    """The uid of its model, empty when nobody has written one."""
    try:
        return (entry / OWNER_FILE).read_text()
    except OSError:
        return ""


def _forbid_bytecode(folder: Path) -> None:
    """Bytecode that Python writes beside a program would count as a change, and every load would load it again."""
    for program in folder.rglob("*.py"):
        # A file where the folder would be: Python goes on without.
        with suppress(FileExistsError):
            program.with_name("__pycache__").touch(exist_ok=False)


def _shown(value: Any) -> str:
    """A task, labels, or tensors."""
    if isinstance(value, tuple):
        value = ", ".join(
            f"{each.name} {each.datatype} {list(each.shape)}" if isinstance(each, Tensor) else str(each)
            for each in value
        )
    return str(value)[:200]


def _require_same_interface(draft: Path, entry: Path) -> None:
    """ExportError when clients of the entry would be surprised by what the draft takes and answers."""
    ours, theirs = _tensors(draft / CONFIG_FILE), _tensors(entry / CONFIG_FILE)
    if ours != theirs:
        raise ExportError(f"it takes and answers {ours}, the other versions of the model {theirs}")
    if (draft / LABELS_FILE).is_file() and (draft / LABELS_FILE).read_text() != (entry / LABELS_FILE).read_text():
        raise ExportError("its labels are not those of the other versions of the model, or in another order")


def _tensors(file: Path) -> str:
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

    config = text_format.Parse(file.read_text(), ModelConfig())
    return ", ".join(
        f"{each.name} {DataType.Name(each.data_type).removeprefix('TYPE_')} {list(each.dims)}"
        for each in (*config.input, *config.output)
    )
