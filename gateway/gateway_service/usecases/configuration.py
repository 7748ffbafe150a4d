"""The effective configuration, without secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata

from gateway_service.settings import GatewaySettings


def effective_configuration(settings: GatewaySettings) -> Mapping[str, str]:
    """Property name -> text, as `GET /conf` answers."""
    service = settings.service
    triton = _triton_urls(settings)
    return {
        "dlmesh.version": _version(),
        "dlmesh.home": str(service.home),
        "dlmesh.data.roots": ":".join(str(root) for root in service.data_roots),
        "dlmesh.instance.group": settings.instance_group,
        "dlmesh.log.level": service.log_level,
        "dlmesh.database": service.database_url.partition(":")[0].partition("+")[0],
        "dlmesh.http.host": settings.http_host,
        "dlmesh.http.port": str(settings.http_port),
        "dlmesh.session.seconds": f"{settings.session_seconds:g}",
        "dlmesh.credential.cache.seconds": f"{settings.credential_cache_seconds:g}",
        **{f"dlmesh.{name}.address": address for name, address in service.peers.items()},
        **{f"triton.{name}.url": url for name, url in triton.items()},
    }


def _triton_urls(settings: GatewaySettings) -> dict[str, str]:
    """What the inference service wrote about its server; DLMESH_TRITON_URL stands over it; empty when none is known."""
    try:
        known = json.loads((settings.run_directory / "triton.json").read_text())
        urls = {protocol: str(known.get(protocol, "")) for protocol in ("http", "grpc")}
    except (OSError, ValueError, AttributeError):
        urls = {"http": "", "grpc": ""}
    return urls | ({"http": settings.triton_url} if settings.triton_url else {})


def _version() -> str:
    try:
        return metadata.version("dlmesh")
    except metadata.PackageNotFoundError:
        return "unknown"
