"""What models with a kernel read from the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from servicekit.settings import SettingError

from inference_service.kernels.engine.limits import PoolLimits

DEFAULT_MAX_MODEL_BYTES = 20 * 1024**3
DEFAULT_MAX_TASK_BYTES = 16 * 1024**2
DEFAULT_WAIT_SECONDS = 60
_EVERYWHERE = ("", "0.0.0.0", "::", "[::]")


@dataclass(frozen=True)
class KernelModelSettings:
    """Limits of models and tasks, who kernels run as, and where clients find the platform.

    DLMESH_KERNEL_USER             user of the operating system that kernels run as; default that of the platform
    DLMESH_MAX_KERNEL_MODEL_BYTES  all files of a model, as they are uploaded and unpacked; default 20 GiB
    DLMESH_MAX_KERNEL_TASK_BYTES   input of one task; default 16 MiB
    DLMESH_KERNEL_WAIT_SECONDS     what a task may wait for a kernel; default 60
    DLMESH_MAX_KERNELS             kernels of all models together; default two for each core
    DLMESH_MAX_KERNEL_TASKS        tasks of one model that wait or run; default 1000
    DLMESH_PUBLIC_URL              http(s)://host[:port] in answers that say where something is; default what
                                   DLMESH_HTTP_HOST and DLMESH_HTTP_PORT say
    """

    execution_user: str = ""
    max_model_bytes: int = DEFAULT_MAX_MODEL_BYTES
    max_task_bytes: int = DEFAULT_MAX_TASK_BYTES
    wait_seconds: int = DEFAULT_WAIT_SECONDS
    max_kernels: int = field(default_factory=lambda: PoolLimits().max_kernels)
    max_tasks: int = PoolLimits.queue_tasks
    public_url: str = "http://127.0.0.1:9280"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> KernelModelSettings:
        """ValueError names the variable."""
        return cls(
            execution_user=environ.get("DLMESH_KERNEL_USER", ""),
            max_model_bytes=_positive(environ, "DLMESH_MAX_KERNEL_MODEL_BYTES", DEFAULT_MAX_MODEL_BYTES),
            max_task_bytes=_positive(environ, "DLMESH_MAX_KERNEL_TASK_BYTES", DEFAULT_MAX_TASK_BYTES),
            wait_seconds=_positive(environ, "DLMESH_KERNEL_WAIT_SECONDS", DEFAULT_WAIT_SECONDS),
            max_kernels=_positive(environ, "DLMESH_MAX_KERNELS", PoolLimits().max_kernels),
            max_tasks=_positive(environ, "DLMESH_MAX_KERNEL_TASKS", PoolLimits.queue_tasks),
            public_url=_public_url(environ),
        )

    @property
    def public_address(self) -> str:
        """host:port for gRPC clients."""
        parts = urlsplit(self.public_url)
        return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _public_url(environ: Mapping[str, str]) -> str:
    url = environ.get("DLMESH_PUBLIC_URL", "").rstrip("/")
    if not url:
        host = environ.get("DLMESH_HTTP_HOST") or "127.0.0.1"
        return (
            f"http://{socket.gethostname() if host in _EVERYWHERE else host}:{environ.get('DLMESH_HTTP_PORT') or 9280}"
        )
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_good = False
    if not is_good:
        raise SettingError(f"DLMESH_PUBLIC_URL: {url!r} is not valid; allowed: http://host:port or https://host:port")
    return url


def _positive(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise SettingError(f"{name}: {text!r} is not valid; allowed: a whole number of at least 1")
    return int(text)
