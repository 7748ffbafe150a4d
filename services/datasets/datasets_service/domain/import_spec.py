"""What an import job is told; the only thing that service and worker share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets_service.domain.request import ImportOptions
from datasets_service.domain.words import Backend, SourceType


@dataclass(frozen=True)
class ImportSpec:
    """One import. Symbolic links in the source may not leave `data_roots`.

    The worker writes below `staging` and publishes by renaming one folder to `target`.
    """

    uid: str
    name: str
    source_type: SourceType
    backend: Backend
    options: ImportOptions
    data_roots: tuple[str, ...]
    staging: str
    target: str

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
                "source_type": SourceType(values["source_type"]),
                "backend": Backend(values["backend"]),
                "options": ImportOptions.from_json(values["options"]),
                "data_roots": tuple(values["data_roots"]),
            }
        )
