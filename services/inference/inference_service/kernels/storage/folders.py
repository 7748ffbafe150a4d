"""The files of kernel models: `inference/kernels/<uid>/`, whole or not there at all.

model/          what was published; kernels read it
weights/<id>/   a copy of weights that lay elsewhere
run/            the pool's: where kernels work, what they print
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from servicekit.archives import ArchiveLimits, checked_parts, unpack
from servicekit.errors import ServiceError, invalid
from servicekit.folders import copy_file, remove_folder, sync_folder
from servicekit.paths import DataRoots, check_length
from servicekit.plain_folders import copy_plain_folder
from servicekit.threads import in_thread

from inference_service.kernels.domain.manifests import DEFAULT_KERNEL, FILE, MAX_BYTES, Manifest, read_manifest
from inference_service.kernels.domain.models import MODEL_FOLDER, WEIGHTS_FOLDER, KernelModel
from inference_service.kernels.usecases.ports import Files
from inference_service.usecases.ports import Upload

README, MAX_README_BYTES = "README.md", 1024 * 1024
# A draft, or a folder without a row, that is older than this is nobody's.
STRAY_SECONDS = 24 * 3600.0
_DRAFT, _OLD, _SPOOL = ".draft-", ".old-", "spool"
_PACKED = "a part `file` with a tar (gzip'd or not) or a zip of the model's folder"
_LEFT_OUT = ("__pycache__", ".git", "__MACOSX")


class DiskKernelFolders:
    """`ports.KernelFolders` below the platform's home."""

    def __init__(self, home: Path, data_roots: Sequence[Path], limits: ArchiveLimits) -> None:
        self._root, self._limits = home / "inference" / "kernels", limits
        self._data_roots, self._first_data_root = DataRoots(data_roots), data_roots[0].resolve()

    def folder(self, uid: str) -> Path:
        return self._root / uid

    def spool(self, uid: str) -> Path:
        return self._draft(uid) / _SPOOL

    async def copy(self, uid: str, model_path: str) -> None:
        await in_thread(self._copy, uid, model_path)

    async def keep(self, uid: str, uploads: Sequence[Upload]) -> None:
        await in_thread(self._keep, uid, uploads)

    async def manifest(self, uid: str) -> Manifest:
        return await asyncio.to_thread(self._manifest, uid)

    async def finish(self, uid: str, kernel: tuple[str, str], weights: tuple[str, str], model_path: str = "") -> Files:
        return await in_thread(self._finish, uid, kernel, weights, model_path)

    async def add_weights(self, model: KernelModel, text: str) -> Files:
        copy = secrets.token_hex(8)
        try:
            return await in_thread(self._add_weights, model, text, copy)
        except BaseException:
            await asyncio.shield(self.remove_weights(model, f"{WEIGHTS_FOLDER}/{copy}"))
            raise

    async def remove(self, uid: str) -> None:
        await asyncio.to_thread(self._remove, uid)

    async def remove_weights(self, model: KernelModel, weights: str) -> None:
        if weights.startswith(f"{WEIGHTS_FOLDER}/"):
            await asyncio.to_thread(remove_folder, self.folder(model.uid) / Path(*Path(weights).parts[:2]))

    async def remove_strays(self, known: Mapping[str, str]) -> None:
        await asyncio.to_thread(self._remove_strays, known)

    async def readme(self, uid: str) -> str:
        return (await asyncio.to_thread(_read, self.folder(uid) / MODEL_FOLDER / README, MAX_README_BYTES)).decode(
            errors="replace"
        )

    def _draft(self, uid: str) -> Path:
        return self._root / f"{_DRAFT}{uid}"

    def _copy(self, uid: str, model_path: str) -> None:
        source = self._data_roots.resolve("modelPath", model_path)
        if not source.is_dir():
            raise invalid("modelPath", model_path, "a folder with a kernel in it")
        draft = self._draft(uid)
        draft.mkdir(parents=True)
        copy_plain_folder(source, draft / MODEL_FOLDER, self._limits, "modelPath", _LEFT_OUT)

    def _keep(self, uid: str, uploads: Sequence[Upload]) -> None:
        if not uploads:
            raise invalid("file", "", f"{_PACKED}, or its files as parts")
        draft = self._draft(uid)
        folder = draft / MODEL_FOLDER
        loose = list(uploads)
        for upload in uploads:
            is_only = len(uploads) == 1
            if (is_only or upload.name == "file") and unpack(upload.path, folder, self._limits):
                loose.remove(upload)
                break
            if upload.name == "file" or (is_only and not upload.name.endswith(".py")):
                raise invalid(
                    "file", upload.name, f"{_PACKED}, or the model's files as parts that are called as they are"
                )
        folder.mkdir(exist_ok=True)
        for upload in loose:
            self._keep_file(upload, folder)
        only = _only_folder(folder)
        if only is not None:
            only.rename(draft / "inner")
            remove_folder(folder)
            (draft / "inner").rename(folder)
        sync_folder(folder)
        remove_folder(draft / _SPOOL)

    def _keep_file(self, upload: Upload, folder: Path) -> None:
        parts = checked_parts(upload.name, self._limits)
        target = folder.joinpath(*parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            is_taken = not parts or target.exists()
        except (FileExistsError, NotADirectoryError):
            is_taken = True
        if is_taken:
            raise invalid("file", upload.name, "each name once")
        with upload.path.open("rb") as file:
            os.fsync(file.fileno())
        upload.path.replace(target)
        target.chmod(0o644)

    def _manifest(self, uid: str) -> Manifest:
        text = _read(self._draft(uid) / MODEL_FOLDER / FILE, MAX_BYTES + 1)
        return read_manifest(text) if text else Manifest()

    def _finish(self, uid: str, kernel: tuple[str, str], weights: tuple[str, str], model_path: str) -> Files:
        draft = self._draft(uid)
        folder = draft / MODEL_FOLDER
        origins = (Path(model_path), self._first_data_root / model_path) if model_path else ()
        kernel_path = self._kernel(folder, *kernel, origins)
        files = Files(kernel_path, self._weights(draft, *weights, secrets.token_hex(8), origins), _size(draft))
        sync_folder(draft)
        draft.rename(self.folder(uid))
        sync_folder(self._root)
        return files

    def _kernel(self, folder: Path, field: str, text: str, origins: Sequence[Path]) -> str:
        path = _inside(folder, field, text, origins)
        if path is None and origins:
            path = self._kernel_from_elsewhere(folder, field, text)
        if path is None or path.suffix != ".py" or not stat.S_ISREG(path.lstat().st_mode):
            known = sorted(str(one.relative_to(folder)) for one in folder.rglob("*.py"))[:10]
            raise invalid(field, text, f"a Python file in the model's folder, as {DEFAULT_KERNEL}; there are {known}")
        return str(path.relative_to(folder))

    def _kernel_from_elsewhere(self, folder: Path, field: str, text: str) -> Path | None:
        """A copy in the model's folder of a program that lies elsewhere below the data roots."""
        try:
            source = self._data_roots.resolve(field, text)
        except ServiceError:
            return None
        target = folder / source.name
        is_program = source.suffix == ".py" and source.is_file() and source.stat().st_size <= MAX_BYTES
        if not is_program or target.exists():
            return None
        copy_file(source, target)
        sync_folder(folder)
        return target

    def _weights(self, top: Path, field: str, text: str, copy: str, origins: Sequence[Path] = ()) -> str:
        if not text:
            return ""
        path = _inside(top / MODEL_FOLDER, field, text, origins)
        if path is not None:
            return str(path.relative_to(top))
        source = self._data_roots.resolve(field, text)
        target = top / WEIGHTS_FOLDER / copy
        target.mkdir(parents=True)
        if source.is_dir():
            copy_plain_folder(source, target / source.name, self._limits, field, _LEFT_OUT)
        elif not source.is_file() or source.stat().st_size > self._limits.size_bytes:
            raise invalid(field, text, f"a plain file or a folder of at most {self._limits.size_bytes} bytes")
        else:
            copy_file(source, target / source.name)
        for folder in (target, target.parent, top):
            sync_folder(folder)
        return str((target / source.name).relative_to(top))

    def _add_weights(self, model: KernelModel, text: str, copy: str) -> Files:
        top = self.folder(model.uid)
        weights = self._weights(top, "weight_path", text, copy)
        size = _size(top / MODEL_FOLDER)
        if weights.startswith(f"{WEIGHTS_FOLDER}/"):
            size += _size(top / Path(*Path(weights).parts[:2]))
        return Files(model.kernel_path, weights, size)

    def _remove(self, uid: str) -> None:
        folder, old = self.folder(uid), self._root / f"{_OLD}{uid}"
        # Gone at once for whoever looks.
        if folder.exists():
            folder.rename(old)
            sync_folder(self._root)
        for path in (old, self._draft(uid)):
            if path.exists():
                remove_folder(path)

    def _remove_strays(self, known: Mapping[str, str]) -> None:
        for path in _entries(self._root):
            uid = path.name.removeprefix(_DRAFT).removeprefix(_OLD)
            if uid not in known:
                _remove_old(path)
                continue
            for copy in _entries(path / WEIGHTS_FOLDER):
                if Path(WEIGHTS_FOLDER, copy.name) not in Path(known[uid]).parents:
                    _remove_old(copy)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _remove_old(folder: Path) -> None:
    """Unless somebody may be at work in it."""
    with contextlib.suppress(FileNotFoundError):
        if time.time() - folder.lstat().st_mtime >= STRAY_SECONDS:
            remove_folder(folder)


def _inside(folder: Path, field: str, text: str, origins: Sequence[Path]) -> Path | None:
    """What `text` names in `folder`, or in the folder that this is a copy of; there are no links in it."""
    check_length(field, text)
    if "\0" in text:
        raise invalid(field, text, "a path without zero bytes")
    relative = Path(text)
    if relative.is_absolute():
        origin = next((origin for origin in origins if relative.is_relative_to(origin)), None)
        if origin is None:
            return None
        relative = relative.relative_to(origin)
    path = Path(os.path.normpath(folder / relative))
    try:
        return path if path.is_relative_to(folder) and path.exists() else None
    except OSError:
        return None


def _only_folder(folder: Path) -> Path | None:
    """The folder in it, when all that was packed lies in one."""
    if (folder / FILE).is_file() or (folder / DEFAULT_KERNEL).is_file():
        return None
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else None


def _read(path: Path, most: int) -> bytes:
    """The begin of a plain file, empty when there is none."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            return file.read(most) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return b""


def _size(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
