"""Model templates: folders of program files that models are made from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from servicekit.errors import forbidden, invalid
from servicekit.identity import Identity

from models_service.domain.hyperparameters import Hyperparameters

SYSTEM_OWNER = "system"
RESERVED_NAMES = ("files",)

MAIN = "main.py"
ELASTIC_MAIN = "elastic-main.py"
# Contract field to the file of a folder that it shows, by the end of the file's name.
CAFFE_FILES = {"solver": "solver.prototxt", "train_test": "train_test.prototxt", "inference": "inference.prototxt"}


@dataclass(frozen=True)
class Template:
    """`path` is where it came from and what users see; `directory` holds the platform's own copy of its files."""

    uid: str
    name: str
    owner: str
    framework: str
    path: Path
    directory: Path
    created_at: datetime
    description: str = ""
    framework_version: str = ""
    hyperparameters: Hyperparameters = field(default_factory=dict)
    batch_size: int | None = None
    built_in: bool = False

    def require_read(self, identity: Identity) -> None:
        """403 unless `identity` may see it; built-in ones are for all."""
        if not self.built_in:
            identity.require_access("model template", self.name, self.owner)

    def require_change(self, identity: Identity) -> None:
        """403 unless `identity` may change it; nobody changes a built-in one."""
        if self.built_in:
            raise forbidden(
                f"model template {self.name!r} is built in and cannot be changed; create one of your own",
                metadata={"kind": "model template", "name": self.name},
            )
        identity.require_access("model template", self.name, self.owner)


def check_files(framework: str, files: Collection[str], field_name: str, value: str) -> None:
    """400 that `field_name` is `value` unless a template folder with `files` (relative names) has what `framework`
    starts from."""
    if framework == "Caffe":
        wanted = [f"*{CAFFE_FILES[kind]}" for kind in ("solver", "train_test") if caffe_file(kind, files) is None]
    else:
        wanted = [] if MAIN in files or ELASTIC_MAIN in files else [f"{MAIN} or {ELASTIC_MAIN}"]
    if wanted:
        needs = f"a template folder for {framework} holds a {' and a '.join(wanted)} at its top"
        raise invalid(field_name, value, f"{needs}; this one holds {_listed(files) or 'no files'}")


def caffe_file(kind: str, files: Collection[str]) -> str | None:
    """The relative name of the `solver`, `train_test` or `inference` prototxt among `files`, if there is one."""
    return next((name for name in sorted(files) if name.endswith(CAFFE_FILES[kind]) and "/" not in name), None)


def _listed(files: Collection[str]) -> str:
    names = sorted(files)
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
