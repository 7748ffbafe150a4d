"""Render the configuration, then become Envoy (same process id, so a supervisor watches Envoy itself)."""

from __future__ import annotations

import os
import sys

from servicekit.settings import ServiceSettings

from gateway_service.envoy import envoy_argv, write_config
from gateway_service.settings import GatewaySettings


def main() -> None:
    """Exit 2 with the reason when a setting is wrong; otherwise never returns."""
    try:
        settings = GatewaySettings.from_environment(ServiceSettings.from_environment("gateway"))
        write_config(settings)
    except (OSError, ValueError) as error:
        print(f"envoy: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    argv = envoy_argv(settings)
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main()
