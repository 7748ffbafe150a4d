"""Generate the Python modules and the descriptor set from protos/: `python libs/contracts/contracts_build.py`.

What is generated is not committed: it cannot drift from the protos, and a fresh clone makes it in seconds.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROTOS = ROOT / "protos"
THIRD_PARTY = ROOT / "third_party" / "googleapis"
PACKAGE = "dlmesh"
DESCRIPTORS = "descriptors.binpb"


def generate(target: Path) -> None:
    """Write modules, type stubs and descriptors below `target`; what was there is replaced whole."""
    well_known = Path(protoc.__file__).parent / "_proto"
    own = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    # Envoy prints error details only when their types are in the set.
    described = [*own, "google/rpc/error_details.proto"]
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".build-") as folder:
        includes = [f"-I{PROTOS}", f"-I{THIRD_PARTY}", f"-I{well_known}"]
        # mypy-protobuf is a program that protoc looks for on PATH; it lies beside the interpreter.
        plugin = f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}"
        outputs = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
        if Path(plugin.split("=")[-1]).exists():
            outputs += [plugin, f"--mypy_out=quiet:{folder}"]
        _protoc([*includes, *outputs, *own])
        _protoc([*includes, f"--descriptor_set_out={folder}/{DESCRIPTORS}", "--include_imports", *described])
        for directory in (Path(folder) / PACKAGE).rglob("*"):
            if directory.is_dir():
                (directory / "__init__.py").touch()
        (Path(folder) / PACKAGE / "__init__.py").touch()
        (Path(folder) / PACKAGE / "py.typed").touch()
        shutil.rmtree(target / PACKAGE, ignore_errors=True)
        (Path(folder) / PACKAGE).rename(target / PACKAGE)
        (Path(folder) / DESCRIPTORS).replace(target / DESCRIPTORS)


def _protoc(arguments: list[str]) -> None:
    code = protoc.main(["protoc", *arguments])
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    generate(HERE)
    print(f"generated {PACKAGE} and {DESCRIPTORS} in {HERE.relative_to(ROOT)}")
