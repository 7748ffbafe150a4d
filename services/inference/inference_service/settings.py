"""What this service reads from the environment besides the common settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from servicekit.machine import memory_bytes
from servicekit.settings import SettingError

from inference_service.triton.installation import Installation, find_installation

DEFAULT_MAX_IMAGE_BYTES = 64 * 1024 * 1024
DEFAULT_MODEL_IDLE_SECONDS = 900
DEFAULT_MODEL_LOAD_SECONDS = 300
# A process with torch and small weights; large models on one machine need the setting.
BYTES_OF_A_MODEL = 400 * 1024 * 1024
FEWEST_LOADED_MODELS = 4
DEFAULT_MAX_UPLOAD_BYTES = 16 * 1024**3
DEFAULT_MAX_UPLOAD_FILES = 50_000
DEFAULT_MAX_ACTIVE_PREDICTIONS = 100


@dataclass(frozen=True)
class TritonSettings:
    """Which Triton is used: one of our own from `installation`, or one of somebody else's at `url` and `grpc`.

    DLMESH_TRITON_HOME   where the server is installed; default `.triton` beside the code
    DLMESH_TRITON        0: start none
    DLMESH_TRITON_URL    http://host[:8000] of a server that has our model repository; none is started then
    DLMESH_TRITON_GRPC   its host[:8001] for gRPC; default the next port
    DLMESH_MODEL_IDLE_SECONDS  after which a model that nobody asks leaves its memory; default 900, 0: never
    DLMESH_MODEL_LOAD_SECONDS  after which a model that is still loading is given up; default 300
    DLMESH_MAX_LOADED_MODELS   most versions of models in its memory; default by the memory there is, 0: no limit
    DLMESH_MODEL_MEMORY_BYTES  most that a process of a version holds; default half of what there is, 0: no limit
    DLMESH_MAX_IMAGE_BYTES   largest image of an upload; default 64 MiB
    DLMESH_MAX_UPLOAD_BYTES  largest upload of a prediction; default 16 GiB
    DLMESH_MAX_UPLOAD_FILES  most files of an upload; default 50000
    DLMESH_MAX_ACTIVE_PREDICTIONS  most predictions of one user that wait or run; default 100
    """

    installation: Installation | None = None
    enabled: bool = True
    url: str = ""
    grpc: str = ""
    model_idle_seconds: int = DEFAULT_MODEL_IDLE_SECONDS
    model_load_seconds: int = DEFAULT_MODEL_LOAD_SECONDS
    max_loaded_models: int = 0
    model_memory_bytes: int = 0
    max_image_bytes: int = DEFAULT_MAX_IMAGE_BYTES
    max_upload_bytes: int = DEFAULT_MAX_UPLOAD_BYTES
    max_upload_files: int = DEFAULT_MAX_UPLOAD_FILES
    max_active_predictions: int = DEFAULT_MAX_ACTIVE_PREDICTIONS

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> TritonSettings:
        """ValueError names the variable."""
        url, grpc = _addresses(environ.get("DLMESH_TRITON_URL", ""), environ.get("DLMESH_TRITON_GRPC", ""))
        return cls(
            installation=find_installation(environ),
            enabled=environ.get("DLMESH_TRITON", "1") != "0",
            url=url,
            grpc=grpc,
            model_idle_seconds=_at_least(0, environ, "DLMESH_MODEL_IDLE_SECONDS", DEFAULT_MODEL_IDLE_SECONDS),
            model_load_seconds=_positive(environ, "DLMESH_MODEL_LOAD_SECONDS", DEFAULT_MODEL_LOAD_SECONDS),
            max_loaded_models=_at_least(0, environ, "DLMESH_MAX_LOADED_MODELS", default_max_loaded_models()),
            model_memory_bytes=_at_least(0, environ, "DLMESH_MODEL_MEMORY_BYTES", half_of_memory_bytes()),
            max_image_bytes=_positive(environ, "DLMESH_MAX_IMAGE_BYTES", DEFAULT_MAX_IMAGE_BYTES),
            max_upload_bytes=_positive(environ, "DLMESH_MAX_UPLOAD_BYTES", DEFAULT_MAX_UPLOAD_BYTES),
            max_upload_files=_positive(environ, "DLMESH_MAX_UPLOAD_FILES", DEFAULT_MAX_UPLOAD_FILES),
            max_active_predictions=_positive(environ, "DLMESH_MAX_ACTIVE_PREDICTIONS", DEFAULT_MAX_ACTIVE_PREDICTIONS),
        )


def _addresses(url: str, grpc: str) -> tuple[str, str]:
    """Both with their ports; without a URL there is neither."""
    if not url:
        return "", ""
    host, port = _host_and_port("DLMESH_TRITON_URL", url, "http://")
    grpc_host, grpc_port = _host_and_port("DLMESH_TRITON_GRPC", grpc, "") if grpc else (host, (port or 8000) + 1)
    return f"http://{host}:{port or 8000}", f"{grpc_host}:{grpc_port or 8001}"


def _host_and_port(name: str, text: str, scheme: str) -> tuple[str, int | None]:
    """An IPv6 address keeps its brackets."""
    rest = text.removeprefix(scheme).rstrip("/")
    try:
        parts = urlsplit(f"//{rest}")
        if not text.startswith(scheme) or not parts.hostname or parts.netloc != rest or parts.username is not None:
            raise ValueError
        return f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname, parts.port
    except ValueError:
        raise SettingError(f"{name}: {text!r} is not valid; allowed: {scheme}host[:port]") from None


def default_max_loaded_models() -> int:
    """What half of the memory holds."""
    return max(FEWEST_LOADED_MODELS, half_of_memory_bytes() // BYTES_OF_A_MODEL)


def half_of_memory_bytes() -> int:
    """Of the machine, or of the container."""
    return memory_bytes() // 2


def _positive(environ: Mapping[str, str], name: str, default: int) -> int:
    return _at_least(1, environ, name, default)


def _at_least(least: int, environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise SettingError(f"{name}: {text!r} is not valid; allowed: a whole number of at least {least}")
    return int(text)
