"""Settings of the gateway beyond those every service has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from servicekit.machine import memory_bytes
from servicekit.settings import ServiceSettings, SettingError
from servicekit.shown_settings import SECRET, SHOWN_ELSEWHERE

# Below this Envoy would refuse what it can serve.
LEAST_MEMORY_BYTES = 128 * 1024**2


@dataclass(frozen=True)
class GatewaySettings:
    """`service` is what every service knows; the rest is read from DLMESH_* variables of the gateway alone.

    `credential_cache_seconds` bounds how long a revoked credential is still accepted by Envoy. `envoy_admin_port` is
    None (no admin interface) unless asked for: its configuration dump shows the platform's secret to every local user.
    `envoy_memory_bytes`: from 85 % of it on Envoy takes no new requests, from 95 % on no more of those that are there.
    Of requests to Triton `max_inference_bytes` bounds the size, `max_inference_requests` how many are under way at a
    time, and `inference_timeout_seconds` how long each may take.
    """

    service: ServiceSettings = field(metadata=SHOWN_ELSEWHERE)
    http_host: str = "127.0.0.1"
    http_port: int = 9280
    envoy_admin_port: int | None = None
    envoy_workers: int = 2
    envoy_memory_bytes: int = 2 * 1024**3
    access_log: str = "/dev/stdout"
    credential_cache_seconds: float = 30.0
    session_seconds: float = 8 * 3600.0
    max_inference_bytes: int = 64 * 1024 * 1024
    max_inference_requests: int = 1024
    inference_timeout_seconds: float = 60.0
    admin_user: str = "Admin"
    admin_password: str | None = field(default=None, metadata=SECRET)

    @property
    def run_directory(self) -> Path:
        """Where Envoy's rendered configuration lies."""
        return self.service.home / "run"

    @classmethod
    def from_environment(cls, service: ServiceSettings, environ: Mapping[str, str] = os.environ) -> GatewaySettings:
        """Read the environment; ValueError names the variable and what it may hold."""
        admin_port = environ.get("DLMESH_ENVOY_ADMIN_PORT")
        return cls(
            service=service,
            http_host=environ.get("DLMESH_HTTP_HOST") or "127.0.0.1",
            http_port=int(_number(environ, "DLMESH_HTTP_PORT", 9280)),
            envoy_admin_port=int(_number(environ, "DLMESH_ENVOY_ADMIN_PORT", 0)) if admin_port else None,
            envoy_workers=int(_number(environ, "DLMESH_ENVOY_WORKERS", _default_workers())),
            envoy_memory_bytes=int(
                _number(environ, "DLMESH_ENVOY_MEMORY_BYTES", _default_memory_bytes(), LEAST_MEMORY_BYTES)
            ),
            access_log=environ.get("DLMESH_ACCESS_LOG") or "/dev/stdout",
            credential_cache_seconds=_number(environ, "DLMESH_CREDENTIAL_CACHE_SECONDS", 30.0),
            session_seconds=_number(environ, "DLMESH_SESSION_SECONDS", 8 * 3600.0),
            max_inference_bytes=int(_number(environ, "DLMESH_MAX_INFERENCE_BYTES", 64 * 1024 * 1024)),
            max_inference_requests=int(_number(environ, "DLMESH_MAX_INFERENCE_REQUESTS", 1024)),
            inference_timeout_seconds=_number(environ, "DLMESH_INFERENCE_TIMEOUT_SECONDS", 60.0),
            admin_user=environ.get("DLMESH_ADMIN_USER") or "Admin",
            admin_password=environ.get("DLMESH_ADMIN_PASSWORD") or None,
        )


def _default_workers() -> int:
    """Threads of Envoy. Services and Triton run on the same CPUs; more threads are woken up more for the same work."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))


def _default_memory_bytes() -> int:
    """An eighth of the memory of the machine, or of the container, but a GiB at least."""
    return max(1024**3, memory_bytes() // 8)


def _number(environ: Mapping[str, str], name: str, default: float, least: int = 0) -> float:
    text = environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= least:
        raise SettingError(f"{name}: {text!r} is not valid; allowed: a number from {least}")
    return value
