"""What the control plane tells the ranks of an exec task, as a JSON file: written on one side, read on the other."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ExecSpec:
    """One task. `folder` is its own: the unpacked upload in `code`, what it leaves in `results` and `log`.

    `program` is the file of `code` that is run with `arguments`, unless `command` (argv) replaces it. `backend` is
    PyTorch, TensorFlow or empty. `warnings` are said once in the errors of the first rank.
    """

    id: str
    framework: str
    backend: str
    folder: str
    code: str
    data: str
    data_root: str
    program: str = ""
    arguments: Sequence[str] = ()
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    datastore: str = ""
    log_level: str = ""
    parameter_servers: int = 0
    devices_per_worker: int = 1
    max_workers: int = 0
    warnings: Sequence[str] = ()

    @property
    def results(self) -> Path:
        """RESULT_DIR; what lies in its folder `model` is the result."""
        return Path(self.folder, "results")

    @property
    def log(self) -> Path:
        """LOG_DIR."""
        return Path(self.folder, "log")

    def write(self, file: Path) -> None:
        """Write the new file `file`, durable but for its name."""
        with file.open("x", encoding="utf-8") as writer:
            json.dump(asdict(self), writer, indent=1)
            writer.flush()
            os.fsync(writer.fileno())

    @classmethod
    def read(cls, file: str | Path) -> ExecSpec:
        """Read what `write` wrote; TypeError when the fields are not those of this class."""
        return cls(**json.loads(Path(file).read_text(encoding="utf-8")))
