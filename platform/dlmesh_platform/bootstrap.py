"""Set-up of a clone: virtual environment, locked dependencies, import paths, generated stubs, the Triton server.

Run by `make setup` with any Python 3.11 before anything is installed, so it imports the standard library only. Each
step keeps a stamp with a digest of what it depends on; a step whose digest has not changed is skipped, so a second run
takes no time, and a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMPS = ROOT / ".setup"
LOCKS = (ROOT / "requirements.lock", ROOT / "requirements-dev.lock")
IMPORT_ROOTS = (
    *(
        ROOT / "libs" / name
        for name in ("contracts", "servicekit", "workerkit", "recordkit", "caffe_nets", "sdk", "testkit")
    ),
    ROOT / "gateway",
    ROOT / "platform",
    *(ROOT / "services" / name for name in ("datasets", "models", "training", "tuning", "inference", "scheduling")),
)
COMMAND = f"""#!/bin/sh
exec "{PYTHON}" -P -m dlmesh_platform.cli "$@"
"""


@dataclass(frozen=True)
class Step:
    """`inputs` are the files its result depends on; `result` must exist for the step to count as done."""

    name: str
    inputs: Sequence[Path]
    result: Path
    run: Callable[[], None]
    note: str = ""

    def digest(self) -> str:
        """Changes when an input, the interpreter or the place of the clone changes."""
        state = hashlib.sha256(f"{ROOT} {sys.version}".encode())
        for path in self.inputs:
            state.update(path.read_bytes())
        return state.hexdigest()


def make_venv() -> None:
    """A fresh virtual environment; what was there goes."""
    venv.EnvBuilder(with_pip=True, clear=True, symlinks=True).create(VENV)


def install_dependencies() -> None:
    """torch first (the build that this machine's index offers), then exactly the locked rest."""
    torch = next(line for line in LOCKS[0].read_text().splitlines() if line.startswith("torch=="))
    _pip("install", torch, "--constraint", str(LOCKS[0]))
    _pip("install", "--no-deps", *(argument for lock in LOCKS for argument in ("--requirement", str(lock))))
    _pip("check")


def link_packages() -> None:
    """Our packages are imported from where they lie, also those generated later: one .pth file and one command."""
    site_packages = next((VENV / "lib").glob("python3.*/site-packages"))
    (site_packages / "dlmesh.pth").write_text("".join(f"{path}\n" for path in IMPORT_ROOTS))
    # So that importlib.metadata knows the version.
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for stale in site_packages.glob("dlmesh-*.dist-info"):
        shutil.rmtree(stale)
    information = site_packages / f"dlmesh-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dlmesh\nVersion: {version}\n")
    command = VENV / "bin" / "dlmesh"
    command.write_text(COMMAND)
    command.chmod(0o755)


def generate_stubs() -> None:
    """Python stubs and the descriptor set from protos/."""
    _python(str(ROOT / "libs" / "contracts" / "contracts_build.py"))


def install_triton() -> None:
    """NVIDIA's inference server, outside the virtual environment."""
    _python("-m", "dlmesh_platform.triton_setup")


def steps() -> list[Step]:
    """In order; a step that runs makes the ones that follow run only when their own inputs changed."""
    protos = sorted([*(ROOT / "protos").rglob("*.proto"), *(ROOT / "third_party").rglob("*.proto")])
    here = Path(__file__)
    return [
        Step("virtual environment", [], PYTHON, make_venv),
        Step("dependencies", LOCKS, VENV / "bin" / "envoy", install_dependencies, " (torch is large)"),
        Step("import paths", [here, ROOT / "pyproject.toml"], VENV / "bin" / "dlmesh", link_packages),
        Step(
            "stubs",
            [ROOT / "libs" / "contracts" / "contracts_build.py", LOCKS[0], *protos],
            ROOT / "libs" / "contracts" / "descriptors.binpb",
            generate_stubs,
        ),
        Step("Triton server", [here.with_name("triton_setup.py")], ROOT / ".triton", install_triton),
    ]


def run_steps(all_steps: Iterable[Step], *, force: str | None = None) -> None:
    """Run what is not done yet; `force` names a step to run in any case."""
    for step in all_steps:
        # A stamp of the environment lies inside it: removing .venv removes the proof that it is complete.
        folder = VENV if step.result.is_relative_to(VENV) else STAMPS
        stamp = folder / f"setup-{step.name.replace(' ', '-')}"
        digest = step.digest()
        if step.name != force and step.result.exists() and stamp.exists() and stamp.read_text() == digest:
            continue
        print(f"set-up: {step.name} ...{step.note}", flush=True)
        started = time.monotonic()
        stamp.unlink(missing_ok=True)
        step.run()
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(digest)
        print(f"set-up: {step.name} done in {time.monotonic() - started:.0f} s", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Exit 1 when a step fails; its output says why. One set-up at a time."""
    if sys.version_info[:2] != (3, 11):
        print(f"dlmesh needs Python 3.11, this is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    STAMPS.mkdir(exist_ok=True)
    with (STAMPS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            run_steps(steps(), force=arguments[0] if arguments else None)
        except subprocess.CalledProcessError as error:
            print(f"set-up: failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
            return 1
    return 0


def _pip(*arguments: str) -> None:
    _python("-m", "pip", *arguments, "--disable-pip-version-check", *(() if arguments[0] == "check" else ("-qq",)))


def _python(*arguments: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    subprocess.run([PYTHON, *arguments], check=True, cwd=ROOT, env=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
