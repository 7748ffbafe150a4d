"""The effective configuration of the whole platform, without secrets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from servicekit.identity import Identity, acting_as, current_identity
from servicekit.shown_settings import without_credentials

from gateway_service.usecases.ports import SettingsSource


class Configuration:
    """Callable by administrators: name -> text, as `GET /conf` answers.

    `services` are asked for their settings, so that what is shown is what they run with.
    """

    def __init__(self, source: SettingsSource, services: Sequence[str], home: Path) -> None:
        self._source = source
        self._services = services
        self._triton_file = home / "inference" / "triton.json"

    async def __call__(self) -> dict[str, str]:
        """403 unless the caller is an administrator; 503 naming a service that does not answer."""
        current_identity().require_admin("read the configuration")
        with acting_as(Identity.service("gateway")):
            found = await asyncio.gather(*(self._source.settings_of(service) for service in self._services))
        return {
            "dlmesh.version": _version(),
            **{
                f"dlmesh.{service}.{name}": value
                for service, settings in zip(self._services, found, strict=True)
                for name, value in sorted(settings.items())
            },
            **self._triton_addresses(),
        }

    def _triton_addresses(self) -> dict[str, str]:
        """What the inference service wrote about the server that it uses; empty when there is none."""
        try:
            known = json.loads(self._triton_file.read_text())
            return {f"triton.{key}.url": without_credentials(str(known.get(key, ""))) for key in ("http", "grpc")}
        except (OSError, ValueError, AttributeError):
            return {"triton.http.url": "", "triton.grpc.url": ""}


def _version() -> str:
    try:
        return metadata.version("dlmesh")
    except metadata.PackageNotFoundError:
        return "unknown"
