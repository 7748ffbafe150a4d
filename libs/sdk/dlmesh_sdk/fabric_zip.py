"""fabric.zip: the elastic modules in one file, which the oldest programs put first on their path.

The platform lays it at $FABRIC_HOME/libs/fabric.zip of every run. `python -m dlmesh_sdk.fabric_zip FILE` writes one to
take along: with torch beside it, it is all that elastic programs need off the platform.

Beside these two it holds packages of ours only, so that it hides none of a program's own files.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

MODULES = ("callbacks", "fabric_model")
PACKAGES = ("dlmesh_sdk", "recordkit", "workerkit")
# Two files of the same modules are the same bytes; a zip knows no earlier day.
_DATE = (1980, 1, 1, 0, 0, 0)


def make_fabric_home(folder: Path) -> Path:
    """Lay libs/fabric.zip into `folder`, which becomes FABRIC_HOME, if it is not there; any worker may at any time."""
    file = folder / "libs" / "fabric.zip"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_fabric_zip(file)
    return folder


def write_fabric_zip(file: Path) -> None:
    """Write the modules as they are imported here, whole or not at all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_bytes(packed())
    draft.replace(file)


@functools.cache
def packed() -> bytes:
    """The content of fabric.zip. A process that forks ranks calls it before: packing takes longer than a start."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, source in sorted(_sources()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, source.read_bytes())
    return content.getvalue()


def _sources() -> Iterator[tuple[str, Path]]:
    """Name in the archive, and file."""
    folder = Path(__file__).parents[1]
    yield from ((f"{module}.py", folder / f"{module}.py") for module in MODULES)
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            yield from ((f"{package}/{source.name}", source) for source in Path(root).glob("*.py"))


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "fabric.zip")
    write_fabric_zip(target)
    print(f"{target}: {target.stat().st_size / 1024:.0f} KiB")
