"""Where the Triton server lies and how it is started: the one place that knows the layout of its wheel."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workerkit.confinement import hiding

HOST = "127.0.0.1"
STUB = "triton_python_backend_stub"
EXIT_SECONDS = 3
LOADS_AT_ONCE = 8
LAUNCHER = Path(__file__).with_name("launcher.py")
# Only who has the key may ask for these; all that models' clients need is free.
RESTRICTED = "model-repository,shared-memory,trace,logging"
KEY_HEADER = "dlmesh-key"
# Of the service's environment models get neither passwords nor settings, as kernels.
INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "HOME")
INHERITED_PREFIXES = ("CUDA", "NVIDIA")
_DEFAULT_HOME = Path(__file__).resolve().parents[4] / ".triton"


@dataclass(frozen=True)
class Ports:
    """What Triton listens on, all on loopback."""

    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True)
class Installation:
    """The server of the nvidia-pytriton wheel, unpacked into `home` by `dlmesh_platform.triton_setup`."""

    home: Path

    @property
    def binary(self) -> Path:
        """The `tritonserver` program."""
        return self.home / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """The folder of backends; `python` in it has the stub of this Python beside its library."""
        return self.home / "pytriton" / "tritonserver" / "backends"

    @property
    def libraries(self) -> Path:
        """Shared libraries that the server and the stub need."""
        return self.home / "nvidia_pytriton.libs"

    @property
    def exists(self) -> bool:
        """Whether it is complete enough to be started."""
        return self.binary.is_file() and (self.backends / "python" / STUB).is_file()

    def command(self, repository: Path, ports: Ports, shm_prefix: str, key: str = "") -> list[str]:
        """argv of a server of `repository` that loads models only when told to, with a `key` only by who sends it.

        `shm_prefix` begins the names of its shared memory regions, so that those of a killed server can be removed.
        """
        restricted = f"{RESTRICTED}:{KEY_HEADER}={key}"
        return [
            str(self.binary),
            f"--model-repository={repository}",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",
            f"--model-load-thread-count={LOADS_AT_ONCE}",
            f"--backend-directory={self.backends}",
            f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
            f"--http-address={HOST}",
            f"--http-port={ports.http}",
            f"--grpc-address={HOST}",
            f"--grpc-port={ports.grpc}",
            f"--metrics-address={HOST}",
            f"--metrics-port={ports.metrics}",
            f"--exit-timeout-secs={EXIT_SECONDS}",
            *([f"--http-restricted-api={restricted}", f"--grpc-restricted-protocol={restricted}"] if key else []),
        ]

    def confined(self, home: Path, command: Sequence[str]) -> list[str]:
        """argv that does the same within the fence of `launcher.py`, and is killed with this process."""
        program = (sys.executable, "-S", "-E", "-s", str(LAUNCHER), str(os.getpid()))
        return [*program, str(home), str(self.home), str(Path(hiding.__file__).parent), *command]

    def environment(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The server's environment. Its Python stub imports what this process can import, torch above all."""
        libraries = [str(self.libraries)]
        library_folder = sysconfig.get_config_var("LIBDIR")
        if library_folder and (Path(library_folder) / f"libpython{sysconfig.get_python_version()}.so.1.0").exists():
            # The stub embeds Python: the very one that runs here, where it is built as a library.
            libraries.append(library_folder)
        inherited = {
            name: value for name, value in environ.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)
        }
        return {
            **inherited,
            # The stub ignores PYTHONPATH; it takes its packages from where the first python3 of PATH has them.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }


def find_installation(environ: Mapping[str, str] = os.environ) -> Installation | None:
    """The server in DLMESH_TRITON_HOME, else in `.triton` beside the code; None when it is not installed."""
    installation = Installation(Path(environ.get("DLMESH_TRITON_HOME") or _DEFAULT_HOME).resolve())
    return installation if installation.exists else None
