"""The model's own model.py."""

from __future__ import annotations

import hashlib
import sys
from importlib import util
from pathlib import Path
from types import ModuleType


def load_program(bundle: Path) -> ModuleType:
    """Import `model.py` of the folder, under a name of its own: every bundle has a file called so.

    What it imports from beside itself is found: the folder comes first in `sys.path`. ValueError when there is none.
    """
    file = bundle / "model.py"
    specification = util.spec_from_file_location(f"dlmesh_bundle_{_digest(bundle)}", file)
    if specification is None or specification.loader is None or not file.is_file():
        raise ValueError(f"{bundle} has no model.py")
    sys.path.insert(0, str(bundle))
    program = util.module_from_spec(specification)
    sys.modules[specification.name] = program
    specification.loader.exec_module(program)
    return program


def _digest(bundle: Path) -> str:
    return hashlib.sha256(str(bundle.resolve()).encode()).hexdigest()[:16]
