"""`python -m dlmesh_platform.spark_setup`: Apache Spark from its Python package, outside the environment.

The package is a source archive that holds all of Spark. Unpacked in the shape of Spark's own distribution it needs no
building, and it is moved into place only after it has said its version, so a folder that exists is one that works.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import marshal
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = "4.3.0"
PACKAGE = f"pyspark=={VERSION}"
MARKER = "installed.json"
LEAST_JAVA = 17
# What of the archive goes where; the rest, examples and the package that pip would build, is not needed.
PLACES = {
    "deps/bin": "bin",
    "deps/sbin": "sbin",
    "deps/jars": "jars",
    "deps/licenses": "licenses",
    "lib": "python/lib",
    "LICENSE": "LICENSE",
    "NOTICE": "NOTICE",
}


class SparkSetupError(RuntimeError):
    """Spark could not be installed or started; the text says why."""


def java_home() -> Path:
    """Of a Java that Spark runs on: JAVA_HOME, else the `java` on the PATH; SparkSetupError without one."""
    named = os.environ.get("JAVA_HOME")
    found = str(Path(named) / "bin" / "java") if named else shutil.which("java")
    if not found or not Path(found).is_file():
        raise SparkSetupError(f"Spark needs Java {LEAST_JAVA} or newer: no JAVA_HOME, and no java on the PATH")
    said = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=60, check=False).stderr
    match = re.search(r'version "(\d+)', said)
    if match is None or int(match[1]) < LEAST_JAVA:
        first = (said.strip() or "nothing").splitlines()[0]
        raise SparkSetupError(f"Spark needs Java {LEAST_JAVA} or newer: {found} says {first}")
    return Path(found).resolve().parents[1]


def install_spark(target: Path, archive: Path | None = None) -> None:
    """Install Spark into `target`, from `archive` when it is at hand; does nothing when it is there already."""
    state = {"package": PACKAGE, "python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    with contextlib.suppress(OSError, ValueError):
        if json.loads((target / MARKER).read_text()) == state and (target / "bin" / "spark-class").is_file():
            return
    java = java_home()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".spark-", dir=target.parent) as folder:
        draft = Path(folder) / "spark"
        _arrange(archive or _download(Path(folder)), Path(folder) / "archive", draft)
        check(draft, java)
        (draft / MARKER).write_text(json.dumps(state))
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)


def check(home: Path, java: Path) -> None:
    """SparkSetupError unless the Spark in `home` starts and is the version that we want."""
    done = subprocess.run(
        [home / "bin" / "spark-submit", "--version"],
        env={"PATH": os.environ.get("PATH", os.defpath), "JAVA_HOME": str(java), "SPARK_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0 or VERSION not in done.stderr:
        raise SparkSetupError(f"Spark does not start: {(done.stderr or done.stdout).strip()[-500:]}")


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--quiet"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--dest", str(folder / "download"), PACKAGE]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SparkSetupError(f"pip cannot download {PACKAGE}: {done.stderr.strip()}")
    return next((folder / "download").iterdir())


def _arrange(archive: Path, unpacked: Path, draft: Path) -> None:
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(unpacked, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise SparkSetupError(f"{archive} cannot be unpacked: {error}") from error
    top = unpacked / f"pyspark-{VERSION}"
    for source, place in PLACES.items():
        if not (top / source).exists():
            raise SparkSetupError(f"{archive} holds no pyspark-{VERSION}/{source}")
        (draft / place).parent.mkdir(parents=True, exist_ok=True)
        (top / source).rename(draft / place)
    for library in (draft / "python" / "lib").glob("*.zip"):
        _compile(library)


def _compile(library: Path) -> None:
    """Add what Python would compile at each start of a driver and an executor: half a second of each."""
    draft = library.with_suffix(".draft")
    with zipfile.ZipFile(library) as given, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as made:
        for entry in given.infolist():
            content = given.read(entry)
            made.writestr(entry.filename, content)
            if entry.filename.endswith(".py"):
                with warnings.catch_warnings():
                    # Of Spark's own code, in which nobody here can mend them.
                    warnings.simplefilter("ignore", SyntaxWarning)
                    code = compile(content, f"{library.name}/{entry.filename}", "exec", dont_inherit=True)
                # Unchecked: the source lies beside it and is never changed.
                header = importlib.util.MAGIC_NUMBER + (0b01).to_bytes(4, "little") + bytes(8)
                made.writestr(f"{entry.filename}c", header + marshal.dumps(code))
    draft.replace(library)


def main() -> int:
    """Install into `.spark` beside the code, from DLMESH_SPARK_ARCHIVE when that is set; 1 when that fails."""
    archive = os.environ.get("DLMESH_SPARK_ARCHIVE")
    try:
        install_spark(ROOT / ".spark", Path(archive) if archive else None)
    except SparkSetupError as error:
        print(f"spark: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
