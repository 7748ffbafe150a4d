"""Configuration: environment only, read once into a frozen object."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from servicekit.shown_settings import SECRET, SHOWN_ELSEWHERE

DEFAULT_PORTS: Mapping[str, int] = MappingProxyType(
    {
        "gateway": 9281,
        "datasets": 9282,
        "models": 9283,
        "training": 9284,
        "tuning": 9285,
        "inference": 9286,
        "scheduling": 9287,
    }
)


class SettingError(ValueError):
    """A variable of the environment has a value that it may not have; the message names it and what is allowed."""


@dataclass(frozen=True)
class ServiceSettings:
    """What a service needs to know to start.

    `home` holds all state; `data_roots` are the folders that server-side paths of a request may point into;
    `peers` maps each service to the host:port where it is reached; `secret` signs calls between services.
    """

    name: str = field(metadata=SHOWN_ELSEWHERE)
    home: Path
    address: str
    database_url: str
    data_roots: tuple[Path, ...]
    peers: Mapping[str, str] = field(metadata=SHOWN_ELSEWHERE)
    secret: str = field(metadata=SECRET)
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, name: str, environ: Mapping[str, str] = os.environ) -> ServiceSettings:
        """Read DLMESH_* variables; creates the home, the default data root and the secret when they are missing."""
        home = Path(environ.get("DLMESH_HOME") or ".dlmesh").resolve()
        home.mkdir(parents=True, exist_ok=True)
        peers = {
            peer: environ.get(f"DLMESH_{peer.upper()}_ADDRESS") or f"127.0.0.1:{port}"
            for peer, port in DEFAULT_PORTS.items()
        }
        roots = [part for part in environ.get("DLMESH_DATA_ROOTS", "").split(":") if part]
        if not roots:
            (home / "data").mkdir(exist_ok=True)
            roots = [str(home / "data")]
        return cls(
            name=name,
            home=home,
            address=peers[name],
            database_url=environ.get("DLMESH_DATABASE_URL") or f"sqlite:///{home / 'db' / f'{name}.sqlite'}",
            data_roots=tuple(Path(root).resolve() for root in roots),
            peers=MappingProxyType(peers),
            secret=read_or_create_secret(home / "secret"),
            log_level=_log_level(environ.get("DLMESH_LOG_LEVEL") or "INFO"),
        )


def _log_level(text: str) -> str:
    allowed = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    if text.upper() not in allowed:
        raise SettingError(f"DLMESH_LOG_LEVEL: {text!r} is not valid; allowed: {', '.join(allowed)}")
    return text.upper()


def read_or_create_secret(path: Path) -> str:
    """Return the secret kept at `path` (mode 0600, restored if need be); the first of several processes creates it."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_mode & 0o077:
            # Somebody opened it to others.
            path.chmod(0o600)
        return path.read_text().strip()
    # Written whole under a name of our own, then linked: a reader never sees an empty file, and only one writer wins.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32))
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
    return path.read_text().strip()
