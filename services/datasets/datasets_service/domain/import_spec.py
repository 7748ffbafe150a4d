"""What an import job is told; the only thing that service and worker share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets_service.domain.words import ColorMode, ResizeMode


@dataclass(frozen=True)
class ImportSpec:
    """An import of class folders.

    `sources` maps train (and val and test, when they have their own) to folders; symbolic links in them may not leave
    `data_roots`. The worker writes below `staging` and publishes by renaming one folder to `target`.
    """

    uid: str
    name: str
    sources: Mapping[str, str]
    data_roots: tuple[str, ...]
    color_mode: ColorMode
    width: int
    height: int
    resize_mode: ResizeMode
    validation_percentage: int
    test_percentage: int
    staging: str
    target: str
    seed: int = 0

    def write(self, path: Path) -> None:
        """Write as JSON; the file appears whole."""
        draft = path.with_name(f".{path.name}")
        draft.write_text(json.dumps(asdict(self), indent=1))
        draft.replace(path)

    @classmethod
    def read(cls, path: Path) -> ImportSpec:
        """What `write` wrote."""
        values = json.loads(path.read_text())
        return cls(
            **{
                **values,
                "data_roots": tuple(values["data_roots"]),
                "color_mode": ColorMode(values["color_mode"]),
                "resize_mode": ResizeMode(values["resize_mode"]),
            }
        )
