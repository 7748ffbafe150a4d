"""What this service reads from the environment besides the common settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from servicekit.settings import SettingError

from inference_service.triton.installation import Installation, find_installation

DEFAULT_MAX_IMAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class TritonSettings:
    """Which Triton is used: one of our own from `installation`, or one of somebody else's at `url` and `grpc`.

    DLMESH_TRITON_HOME   where the server is installed; default `.triton` beside the code
    DLMESH_TRITON        0: start none
    DLMESH_TRITON_URL    http://host:port of a server that has our model repository; none is started then
    DLMESH_TRITON_GRPC   its host:port for gRPC; default the next port
    DLMESH_MAX_IMAGE_BYTES   largest image of an upload; default 64 MiB
    """

    installation: Installation | None = None
    enabled: bool = True
    url: str = ""
    grpc: str = ""
    max_image_bytes: int = DEFAULT_MAX_IMAGE_BYTES

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> TritonSettings:
        """ValueError names the variable."""
        url = environ.get("DLMESH_TRITON_URL", "")
        return cls(
            installation=find_installation(environ),
            enabled=environ.get("DLMESH_TRITON", "1") != "0",
            url=url,
            grpc=environ.get("DLMESH_TRITON_GRPC", "") or (_next_port(url) if url else ""),
            max_image_bytes=_positive(environ, "DLMESH_MAX_IMAGE_BYTES", DEFAULT_MAX_IMAGE_BYTES),
        )


def _next_port(url: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError
        return f"{parts.hostname}:{(parts.port or 8000) + 1}"
    except ValueError:
        raise SettingError(f"DLMESH_TRITON_URL: {url!r} is not valid; allowed: http://host:port") from None


def _positive(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not text.isdigit() or int(text) < 1:
        raise SettingError(f"{name}: {text!r} is not valid; allowed: a whole number of at least 1")
    return int(text)
