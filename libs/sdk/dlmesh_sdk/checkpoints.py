"""Resumable checkpoints that are either complete or not there, written beside the training.

The state is copied in memory between two steps; a thread of each worker writes its part to a draft folder while the
training goes on. When all parts are there, the first worker seals the draft with a manifest of sizes and SHA-256 sums
and publishes it by one rename; it alone says which checkpoints there are. A reader takes the newest checkpoint whose
manifest holds.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlmesh_sdk.program_logs import say

if TYPE_CHECKING:
    from dlmesh_sdk.gang import Gang

MANIFEST = "manifest.json"
FINAL_WEIGHTS = "model_epoch_final.pth"
MIN_SECONDS_BETWEEN = 10.0
# Copying and writing take at most about this share of the time.
MAX_SHARE_OF_TIME = 0.02
# The training has the cores first.
WRITER_NICENESS = 10
PART_SECONDS = 600.0
_PART = "dlmesh-checkpoint-{}-part-{}"
_PUBLISHED = re.compile(r"step-(\d{10})")


class Checkpoints:
    """The checkpoints of one training under `folder/steps`, and its weights as plain files in `folder`.

    The newest `keep` are kept. With `interval_steps` one is due every so many steps, else every ten seconds, or less
    often so that they take at most about 2 % of the time.
    """

    def __init__(self, folder: str | Path, gang: Gang, keep: int = 2, interval_steps: int = 0) -> None:
        self.folder = Path(folder)
        self.steps = self.folder / "steps"
        self.gang = gang
        self.keep = keep
        self.interval_steps = interval_steps
        self._last = time.monotonic()
        self._pause_seconds = MIN_SECONDS_BETWEEN
        # Joined when the interpreter ends: what was given to it is written.
        self._writer = ThreadPoolExecutor(1, "checkpoints", initializer=_be_nice)
        self._writing: Future[None] | None = None
        self._saves = 0
        if gang.is_first:
            self.steps.mkdir(parents=True, exist_ok=True)
            for draft in self.folder.glob("**/.draft-*"):
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
        gang.barrier()

    def due(self, step: int = 0) -> bool:
        """True when it is time for the next save; `step` counts only when there is an interval in steps."""
        if self.interval_steps and step:
            return step % self.interval_steps == 0
        is_writing = self._writing is not None and not self._writing.done()
        return not is_writing and time.monotonic() - self._last >= self._pause_seconds

    def save(self, engine: Any, step: int, **state: Any) -> None:
        """Collective: keep the engine's whole state and `state` as the checkpoint of `step`.

        It is published a little later, at the latest when the process ends. One that cannot be written (a full disk)
        is said and left out: the training goes on. The disk is touched by the thread alone, never by the caller.
        """
        self.finish()
        self._saves += 1
        save = self._saves
        begin = time.monotonic()
        draft = self.steps / f".draft-{step:010d}"
        parts = _parts_of(engine, draft, {"state": state})
        copied = time.monotonic()
        facts = {"step": step, "world_size": self.gang.world_size, "zero_stage": engine.zero_optimization_stage()}

        def write() -> None:
            resumed = time.monotonic()
            error = _agreed(_written(parts), save, self.gang)
            if self.gang.is_first:
                self._publish(draft, step, facts, error)
            self._last = time.monotonic()
            seconds = copied - begin + self._last - resumed
            self._pause_seconds = max(MIN_SECONDS_BETWEEN, seconds / MAX_SHARE_OF_TIME)

        self._writing = self._writer.submit(write)

    def _publish(self, draft: Path, step: int, facts: dict[str, Any], error: str) -> None:
        """The first worker's part: a checkpoint of the draft, or a line that says what went wrong."""
        if not error:
            try:
                publish(draft, self.steps / f"step-{step:010d}", facts)
            except OSError as failure:
                error = str(failure)
        if error:
            # First: the line goes to the same disk, it may be.
            shutil.rmtree(draft, ignore_errors=True)
            say(f"the checkpoint of step {step} could not be written: {error}")
            return
        try:
            prune(self.steps, self.keep, step)
        except OSError as failure:
            say(f"checkpoints before step {step} could not be removed: {failure}")

    def finish(self) -> None:
        """Wait until this worker's part of everything is written; raises when weights could not be."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def load_newest(self, engine: Any) -> tuple[int, dict[str, Any]]:
        """Collective: restore the newest complete checkpoint; (its step, its state), or (0, {}) when there is none."""
        found = None
        if self.gang.is_first:
            discard_damaged(self.steps)
            # Without ZeRO every worker has the whole state, and any number of them can go on from it.
            is_divided = engine.zero_optimization_stage() > 0
            found = newest_complete(self.steps, self.gang.world_size if is_divided else None)
        chosen = self.gang.share(str(found or ""))
        if not chosen:
            return 0, {}
        _, client_state = engine.load_checkpoint(chosen, tag="state")
        return read_manifest(Path(chosen))["facts"]["step"], client_state["state"]

    def write_weights(self, engine: Any, name: str) -> None:
        """Collective: write the model's weights as the plain state dict `folder/name`, whole or not at all.

        Final weights are there when this returns, others soon after.
        """
        self.finish()
        if engine.zero_optimization_stage() == 3:
            weights = engine._zero3_consolidated_16bit_state_dict()
        else:
            weights = engine.module.state_dict() if self.gang.is_first else None
        if self.gang.is_first:
            weights = _copied(dict(weights), {})

            def write() -> None:
                import torch

                write_whole(self.folder / name, lambda draft: torch.save(weights, draft))

            self._writing = self._writer.submit(write)
        if name == FINAL_WEIGHTS:
            self.finish()


class _Snapshot:
    """Stands in for DeepSpeed's own writer while it saves: it keeps copies instead of writing them."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.parts: list[tuple[Path, Any]] = []

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: folders are made when the files are written."""

    def save(self, state_dict: Any, path: str) -> None:
        self.parts.append((Path(path), _copied(state_dict, {})))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


def _parts_of(engine: Any, draft: Path, state: dict[str, Any]) -> list[tuple[Path, Any]]:
    """What this worker has to write, copied to main memory: files and their contents."""
    snapshot = _Snapshot(engine.checkpoint_engine)
    engine.checkpoint_engine = snapshot
    # DeepSpeed copies scripts for people beside its files, at once and to a folder that is not there yet.
    engine._copy_recovery_script = lambda folder: None
    try:
        engine.save_checkpoint(str(draft), tag="state", client_state=state, save_latest=False)
    finally:
        engine.checkpoint_engine = snapshot._writer
        del engine._copy_recovery_script
    return snapshot.parts


def _copied(value: Any, known: dict[Any, Any]) -> Any:
    """Nested dicts, lists and tuples with tensors in main memory; those over the same memory stay one (`known`)."""
    import torch

    if isinstance(value, torch.Tensor):
        # Tied weights are different objects over the same memory.
        place = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if not value.numel() or place not in known:
            known[place] = value.detach().to("cpu", copy=True)
        return known[place]
    if isinstance(value, dict):
        same = copy.copy(value)
        for key, item in value.items():
            # Not `update`: that of a Counter, as schedulers have it for their milestones, adds.
            same[key] = _copied(item, known)
        return same
    if type(value) in (list, tuple):
        return type(value)(_copied(item, known) for item in value)
    return value


def _written(parts: list[tuple[Path, Any]]) -> str:
    """Write this worker's files; what went wrong, empty when nothing did."""
    import torch

    try:
        for path, content in parts:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, path)
    except (OSError, RuntimeError) as failure:
        return str(failure) or type(failure).__name__
    return ""


def _agreed(error: str, save: int, gang: Gang) -> str:
    """Tell the first worker how this worker's part of the save (1, 2 ...) went; for it, what went wrong with any part.

    Through the gang's store: a disk that is full would not take a file that says so.
    """
    if gang.world_size == 1:
        return error
    from torch.distributed import distributed_c10d

    store: Any = distributed_c10d._get_default_store()
    if not gang.is_first:
        store.set(_PART.format(save, gang.rank), error)
        return error
    deadline = time.monotonic() + PART_SECONDS
    errors = [error]
    for rank in range(1, gang.world_size):
        part = _PART.format(save, rank)
        while not store.check([part]):
            if time.monotonic() > deadline:
                return f"the part of worker {rank} is missing"
            time.sleep(0.01)
        errors.append(store.get(part).decode())
        store.delete_key(part)
    return "; ".join(error for error in errors if error)


def _be_nice() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WRITER_NICENESS)


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a draft beside `file`, and give it that name when it is on the disk: whole or not at all."""
    draft = file.with_name(f".draft-{file.name}")
    write(draft)
    _flush(draft)
    draft.replace(file)
    _flush(file.parent)


def publish(draft: Path, final: Path, facts: dict[str, Any]) -> None:
    """Seal the folder `draft` with a manifest and rename it to `final`; a complete `final` stays as it is."""
    files = {}
    for file in sorted(path for path in draft.rglob("*") if path.is_file()):
        files[str(file.relative_to(draft))] = {"size": file.stat().st_size, "sha256": _sha256(file)}
        _flush(file)
    manifest = draft / MANIFEST
    manifest.write_text(json.dumps({"facts": facts, "files": files}, indent=1), encoding="utf-8")
    _flush(manifest)
    _flush(draft)
    if is_complete(final):
        # Written before a restart: the same step holds the same state.
        shutil.rmtree(draft)
        return
    if final.exists():
        shutil.rmtree(final)
    draft.rename(final)
    _flush(final.parent)


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a published checkpoint; OSError or ValueError when it is missing or not JSON."""
    manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def is_complete(checkpoint: Path) -> bool:
    """True when every file of the manifest is there with its size and checksum."""
    try:
        files = read_manifest(checkpoint)["files"]
        return all(
            (checkpoint / name).stat().st_size == facts["size"] and _sha256(checkpoint / name) == facts["sha256"]
            for name, facts in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def newest_complete(steps: Path, world_size: int | None = None) -> Path | None:
    """The newest checkpoint that is whole (and was written by `world_size` workers, when given)."""
    for checkpoint in sorted(_published(steps), reverse=True):
        if not is_complete(checkpoint):
            continue
        if world_size is not None and read_manifest(checkpoint)["facts"].get("world_size") != world_size:
            say(f"checkpoint {checkpoint.name} is of another number of workers and is skipped")
        else:
            return checkpoint
    return None


def discard_damaged(steps: Path) -> None:
    """Remove checkpoints that are not whole, so that they do not count among those to keep."""
    for checkpoint in _published(steps):
        if not is_complete(checkpoint):
            say(f"checkpoint {checkpoint.name} is damaged and is removed")
            shutil.rmtree(checkpoint)


def prune(steps: Path, keep: int, step: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`; later ones are none that this run could go on from."""
    mine = [checkpoint for checkpoint in _published(steps) if int(checkpoint.name.removeprefix("step-")) <= step]
    for checkpoint in sorted(mine, reverse=True)[keep:]:
        shutil.rmtree(checkpoint)


def _published(steps: Path) -> list[Path]:
    return [path for path in steps.iterdir() if _PUBLISHED.fullmatch(path.name)] if steps.is_dir() else []


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
