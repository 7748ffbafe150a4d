"""Where Triton is, in files that Envoy follows.

The inference service publishes Triton's addresses in `inference/triton.json` below the home and may change them at any
time. They are copied into one file of endpoints for each protocol, replaced by a rename, which Envoy notices.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from servicekit.reconcile import Next

from gateway_service.envoy.blocks import Json, is_address, socket_address, typed

log = logging.getLogger(__name__)

TRITON_HTTP, TRITON_GRPC = "triton_http", "triton_grpc"


def endpoints_folder(home: Path) -> Path:
    """The folder that Envoy watches."""
    return home / "run" / "endpoints"


def endpoints_file(home: Path, cluster: str) -> Path:
    """The endpoints of one cluster."""
    return endpoints_folder(home) / f"{cluster}.json"


class TritonEndpoints:
    """`step` is a reconcile step of the gateway service; `write` is for before Envoy starts.

    Triton away for good (no triton.json) is a list without endpoints: Envoy answers 503 at once. So is a host name that
    has no address now: a Triton in a container of its own may start after the platform.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._addresses = home / "inference" / "triton.json"

    async def step(self) -> Next:
        """Copy what changed."""
        await asyncio.to_thread(self.write)
        return Next.LATER

    def write(self) -> None:
        """Files that differ from triton.json are replaced."""
        known = _read(self._addresses)
        for cluster, url, default_port in (
            (TRITON_HTTP, known.get("http", ""), 8000),
            (TRITON_GRPC, f"//{known.get('grpc', '')}", 8001),
        ):
            _replace(endpoints_file(self._home, cluster), json.dumps(_resource(cluster, url, default_port)))


def _read(file: Path) -> dict[str, str]:
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return {key: str(value) for key, value in known.items()} if isinstance(known, dict) else {}


def _resource(cluster: str, url: str, default_port: int) -> Json:
    endpoints = []
    try:
        parts = urlsplit(url)
        if parts.hostname:
            address = socket_address(_resolve(parts.hostname), parts.port or default_port)
            endpoints = [{"endpoint": {"address": address}}]
    except (OSError, ValueError) as error:
        log.debug("no address for %s %r: %s", cluster, url, error)
    return {
        "version_info": hashlib.sha256(json.dumps(endpoints).encode()).hexdigest()[:12],
        "resources": [
            typed(
                "envoy.config.endpoint.v3.ClusterLoadAssignment",
                cluster_name=cluster,
                endpoints=[{"lb_endpoints": endpoints}],
            )
        ],
    }


def _resolve(host: str) -> str:
    """Endpoints are addresses; Envoy looks up no names here."""
    if is_address(host):
        return host
    return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])


def _replace(file: Path, text: str) -> None:
    if file.exists() and file.read_text() == text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(file)
