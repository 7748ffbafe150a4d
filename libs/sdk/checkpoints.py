"""Resumable checkpoints that are either complete or not there.

A checkpoint is written to a draft folder, sealed with a manifest of sizes and SHA-256 sums, and published by one
rename. A reader takes the newest one whose manifest holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gang import Gang

MANIFEST = "manifest.json"
MIN_SECONDS_BETWEEN = 10.0
# Writing takes at most about this share of the time.
MAX_SHARE_OF_TIME = 0.05
_PUBLISHED = re.compile(r"step-(\d{10})")


class Checkpoints:
    """The checkpoints of one training under `folder/steps`, and its weights as plain files in `folder`."""

    def __init__(self, folder: str | Path, gang: Gang, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.steps = self.folder / "steps"
        self.gang = gang
        self.keep = keep
        self._last = time.monotonic()
        self._pause_seconds = MIN_SECONDS_BETWEEN
        if gang.is_first:
            self.steps.mkdir(parents=True, exist_ok=True)
            for draft in self.folder.glob("**/.draft-*"):
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
        gang.barrier()

    def due(self) -> bool:
        """True when enough time has passed since the last save."""
        return time.monotonic() - self._last >= self._pause_seconds

    def save(self, engine: Any, step: int, **state: Any) -> None:
        """Collective: publish the engine's whole state and `state` as the checkpoint of `step`; keep the newest few."""
        begin = time.monotonic()
        draft = self.steps / f".draft-{step:010d}"
        engine.save_checkpoint(str(draft), tag="state", client_state={"state": state}, save_latest=False)
        self.gang.barrier()
        if self.gang.is_first:
            publish(draft, self.steps / f"step-{step:010d}", {"step": step, "world_size": self.gang.world_size})
            prune(self.steps, self.keep)
        self.gang.barrier()
        self._last = time.monotonic()
        self._pause_seconds = max(MIN_SECONDS_BETWEEN, (self._last - begin) / MAX_SHARE_OF_TIME)

    def load_newest(self, engine: Any) -> tuple[int, dict[str, Any]]:
        """Collective: restore the newest complete checkpoint; (its step, its state), or (0, {}) when there is none."""
        found = None
        if self.gang.is_first:
            discard_damaged(self.steps)
            found = newest_complete(self.steps, self.gang.world_size)
        chosen = self.gang.share(str(found or ""))
        if not chosen:
            return 0, {}
        _, client_state = engine.load_checkpoint(chosen, tag="state")
        return read_manifest(Path(chosen))["facts"]["step"], client_state["state"]

    def write_weights(self, engine: Any, name: str) -> None:
        """Collective: write the model's weights as the plain state dict `folder/name`, whole or not at all."""
        import torch

        if engine.zero_optimization_stage() == 3:
            weights = engine._zero3_consolidated_16bit_state_dict()
        else:
            weights = engine.module.state_dict()
        if self.gang.is_first:
            draft = self.folder / f".draft-{name}"
            torch.save({key: value.detach().cpu() for key, value in weights.items()}, draft)
            _flush(draft)
            draft.replace(self.folder / name)
            _flush(self.folder)


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
            print(f"checkpoint {checkpoint.name} is of another number of workers and is skipped", flush=True)
        else:
            return checkpoint
    return None


def discard_damaged(steps: Path) -> None:
    """Remove checkpoints that are not whole, so that they do not count among those to keep."""
    for checkpoint in _published(steps):
        if not is_complete(checkpoint):
            print(f"checkpoint {checkpoint.name} is damaged and is removed", flush=True)
            shutil.rmtree(checkpoint)


def prune(steps: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for checkpoint in sorted(_published(steps), reverse=True)[keep:]:
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
