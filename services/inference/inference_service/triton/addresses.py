"""Where Triton is: one file below the home, written by the service, read by it, workers and the gateway service."""

from __future__ import annotations

import json
import os
from pathlib import Path


def address_file(home: Path) -> Path:
    """{"http": URL, "grpc": host:port} and, of a server of our own, "metrics": URL; absent while there is no server."""
    return home / "inference" / "triton.json"


def write_addresses(file: Path, addresses: dict[str, str]) -> None:
    """Replace the file whole: a reader sees the old addresses or the new."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(json.dumps(addresses, indent=1))
    draft.replace(file)


def read_grpc_address(file: Path) -> str | None:
    """host:port of the server's gRPC; None when none was published."""
    try:
        return str(json.loads(file.read_text())["grpc"])
    except (OSError, ValueError, KeyError):
        return None
