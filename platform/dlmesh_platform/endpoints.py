"""Where the platform's processes listen: chosen once, kept in `run/endpoints.json`, so that restarts keep them."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Mapping
from pathlib import Path

SERVICES = ("gateway", "datasets", "models", "training", "tuning", "inference", "scheduling")
# Below the range from which the kernel takes ports for outgoing connections.
INTERNAL_PORTS = range(20000, 32000)


class PortInUseError(RuntimeError):
    """The public port is taken; the message says what to do."""


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def becomes_free(port: int, patience_seconds: float = 4.0) -> bool:
    """As `is_free`, but services of a supervisor that was killed may need a moment to go."""
    deadline = time.monotonic() + patience_seconds
    while not is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def free_port(taken: set[int]) -> int:
    """A port of the internal range on which nothing listens."""
    for port in random.sample(INTERNAL_PORTS, 200):
        if port not in taken and is_free(port):
            taken.add(port)
            return port
    raise PortInUseError(f"no free port between {INTERNAL_PORTS.start} and {INTERNAL_PORTS.stop}")


def internal_addresses(home: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """host:port of each service: from DLMESH_<SERVICE>_ADDRESS, else as last time, else a free port."""
    file = home / "run" / "endpoints.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    addresses, taken = {}, {public_address(environ)[1]}
    for name in SERVICES:
        address = environ.get(f"DLMESH_{name.upper()}_ADDRESS") or kept.get(name)
        if address is None or (address == kept.get(name) and not becomes_free(int(address.rpartition(":")[2]))):
            address = f"127.0.0.1:{free_port(taken)}"
        taken.add(int(address.rpartition(":")[2]))
        addresses[name] = address
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps(addresses, indent=1))
    draft.replace(file)
    return addresses


def public_address(environ: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port of the REST API; ValueError names the variable."""
    text = environ.get("DLMESH_HTTP_PORT") or "9280"
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ValueError(f"DLMESH_HTTP_PORT: {text!r} is not valid; allowed: a port from 1 to 65535")
    return environ.get("DLMESH_HTTP_HOST") or "127.0.0.1", int(text)
