"""Services in the test's own process, on free ports, with a client that speaks as any user."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import grpc
from servicekit.channels import Channels
from servicekit.identity import Identity, acting_as
from servicekit.server import Application
from servicekit.settings import DEFAULT_PORTS, ServiceSettings

Stub = TypeVar("Stub")
SECRET = "test-secret"


def settings_for(
    name: str, home: Path, *, database_url: str | None = None, peers: dict[str, str] | None = None
) -> ServiceSettings:
    """Settings of a service below `home`, on a free port, its data root `home/data`."""
    data_root = home / "data"
    data_root.mkdir(parents=True, exist_ok=True)
    unreachable = dict.fromkeys(DEFAULT_PORTS, "127.0.0.1:1")
    return ServiceSettings(
        name=name,
        home=home,
        address="127.0.0.1:0",
        database_url=database_url or f"sqlite:///{home / 'db' / f'{name}.sqlite'}",
        data_roots=(data_root,),
        peers=MappingProxyType({**unreachable, **(peers or {})}),
        secret=SECRET,
    )


class Client:
    """Stubs of a started service; `as_user` says who calls."""

    def __init__(self, name: str, port: int) -> None:
        settings = ServiceSettings(
            name="test",
            home=Path(),
            address="",
            database_url="",
            data_roots=(),
            peers=MappingProxyType({name: f"127.0.0.1:{port}"}),
            secret=SECRET,
        )
        self._name = name
        self.port = port
        self._channels = Channels(settings)

    def stub(self, stub_class: Callable[[grpc.aio.Channel], Stub]) -> Stub:
        """A stub of `stub_class`; calls are made as the identity that `acting_as` set, else as a service."""
        return self._channels.stub(self._name, stub_class)

    async def close(self) -> None:
        await self._channels.close()


@asynccontextmanager
async def running(application: Application, settings: ServiceSettings) -> AsyncIterator[Client]:
    """Start `application` in this process; it is stopped when the block ends."""
    port = await application.start(settings)
    client = Client(application.name, port)
    try:
        yield client
    finally:
        await client.close()
        await application.stop()


ALICE = Identity(user="alice")
BOB = Identity(user="bob")
ADMIN = Identity(user="Admin", is_admin=True)

__all__ = ["ADMIN", "ALICE", "BOB", "SECRET", "Client", "acting_as", "collect", "running", "settings_for"]


async def collect(stream: AsyncIterator[Stub] | Iterable[Stub]) -> list[Stub]:
    """All messages of a server stream."""
    if isinstance(stream, AsyncIterator) or hasattr(stream, "__aiter__"):
        return [message async for message in stream]
    return list(stream)
