"""What all commands of `dlmesh` share: where they print, whom they speak with, how they fail."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import requests
import typer
from rich.console import Console
from rich.markup import escape

from dlmesh_platform.client import ApiError, Client
from dlmesh_platform.endpoints import PortInUseError, public_address
from dlmesh_platform.launch import LaunchError
from dlmesh_platform.supervisor import PlatformError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
# From here on tables show all that there is.
WIDE_COLUMNS = 130
Parameters = ParamSpec("Parameters")
KNOWN_ERRORS = (PlatformError, PortInUseError, LaunchError, ApiError, requests.RequestException, OSError, ValueError)


def home_folder() -> Path:
    return Path(os.environ.get("DLMESH_HOME") or ".dlmesh").resolve()


def plain_errors(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """What is expected to go wrong ends in one line, not in a traceback."""

    @wraps(command)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # Names of users may hold what the terminal cannot print.
                stream.reconfigure(errors="replace")
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except KNOWN_ERRORS as error:
            err.print(f"[red]dlmesh:[/] {escape(_words(error))}", soft_wrap=True)
            raise typer.Exit(1) from None

    return wrapped


def _words(error: Exception) -> str:
    if isinstance(error, requests.ConnectionError):
        url = error.request.url if error.request is not None else "the platform"
        return f"nothing answers at {url}; is it running? (dlmesh serve)"
    return str(error)


def supervisor_state(home: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((home / "run" / "supervisor.json").read_text()))
    except FileNotFoundError:
        return {}


def platform_client(home: Path, **options: float) -> Client:
    host, port = public_address()
    url = str(supervisor_state(home).get("url") or f"http://{host}:{port}")
    user = os.environ.get("DLMESH_ADMIN_USER") or "Admin"
    password = os.environ.get("DLMESH_ADMIN_PASSWORD")
    if password:
        return Client(url, user, password, **{"patience_seconds": 2.0, **options})
    if not (home / "admin_password").exists():
        raise PlatformError(
            f"no password: {home}/admin_password does not exist; set DLMESH_HOME, or DLMESH_ADMIN_USER and "
            "DLMESH_ADMIN_PASSWORD"
        )
    return Client.of_home(home, url, user, **options)


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `5 h`, `2 d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
