"""Clients of online inference: so many connections, each asks again as soon as it is answered."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import uvloop


@dataclass
class Load:
    """What a number of connections got: when each request began and how long it took, in seconds."""

    began: float = 0.0
    ended: float = 0.0
    seconds: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / (self.ended - self.began)

    @property
    def p99_ms(self) -> float:
        return statistics.quantiles(self.seconds, n=100)[98] * 1e3


@dataclass(frozen=True)
class Example:
    """One request to a model: its only tensor, [1, ...], by its name and datatype in the protocol."""

    model: str
    tensor: str
    datatype: str
    values: Any


def tensor_request(example: Example, host: str, headers: Mapping[str, str]) -> bytes:
    """POST /v2/models/{model}/infer in the binary form of the protocol, rendered once."""
    values = example.values.tobytes()
    tensor = {"name": example.tensor, "shape": list(example.values.shape), "datatype": example.datatype}
    wanted = {"name": "OUTPUT__0", "parameters": {"binary_data": True}}
    head = json.dumps(
        {"inputs": [{**tensor, "parameters": {"binary_data_size": len(values)}}], "outputs": [wanted]}
    ).encode()
    lengths = {"inference-header-content-length": str(len(head))}
    return post_request(f"/v2/models/{example.model}/infer", host, head + values, {**headers, **lengths})


def post_request(path: str, host: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """The bytes of a POST."""
    lines = [f"POST {path} HTTP/1.1", f"host: {host}", "content-type: application/octet-stream"]
    lines += [f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Connection(asyncio.Protocol):
    """Sends the same request again and again: what is timed is the server, not a client library."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    async def ask(self, load: Load, until: float) -> None:
        """Once at least."""
        self._load, self._until = load, until
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._send()
        await self._ended

    async def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or not _is_whole(head, body):
            return
        now = time.perf_counter()
        if not head.startswith(b"HTTP/1.1 200"):
            self._fail(RuntimeError(self._received[:2000].decode(errors="replace")))
            return
        self._load.seconds.append(now - self._sent)
        self._received = b""
        if now < self._until:
            self._send()
        else:
            self._ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("the server closed the connection"))

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def _fail(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)


def _is_whole(head: bytes, body: bytes) -> bool:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line[15:])
    return body.endswith(b"0\r\n\r\n")


def rest_load(address: str, request: bytes, connections: int, seconds: float) -> Load:
    """`connections` sockets to host:port for so long; RuntimeError with the answer when one is not 200."""
    host, _, port = address.rpartition(":")

    async def connect() -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(request), host, int(port)
        )
        return connection

    return _together(connect, connections, seconds)


class _Channel:
    """tritonclient with a channel of its own."""

    def __init__(self, address: str, example: Example, headers: Mapping[str, str] | None) -> None:
        from tritonclient.grpc import InferInput
        from tritonclient.grpc.aio import InferenceServerClient

        self._tensor = InferInput(example.tensor, list(example.values.shape), example.datatype)
        self._tensor.set_data_from_numpy(example.values)
        self._model, self._headers = example.model, headers
        self._client = InferenceServerClient(address, channel_args=[("grpc.use_local_subchannel_pool", 1)])

    async def ask(self, load: Load, until: float) -> None:
        """Once at least."""
        while True:
            sent = time.perf_counter()
            await self._client.infer(self._model, [self._tensor], headers=self._headers)
            now = time.perf_counter()
            load.seconds.append(now - sent)
            if now >= until:
                return

    async def close(self) -> None:
        await self._client.close()


def grpc_load(
    address: str, example: Example, headers: Mapping[str, str] | None, connections: int, seconds: float
) -> Load:
    """The same with tritonclient over gRPC."""

    async def connect() -> _Channel:
        return _Channel(address, example, headers)

    return _together(connect, connections, seconds)


def _together(connect: Callable[[], Awaitable[_Connection | _Channel]], connections: int, seconds: float) -> Load:
    """Time begins when each has been answered once."""
    load = Load()

    async def run() -> None:
        asking = [await connect() for _ in range(connections)]
        await asyncio.gather(*(each.ask(Load(), 0.0) for each in asking))
        load.began = time.perf_counter()
        await asyncio.gather(*(each.ask(load, load.began + seconds) for each in asking))
        load.ended = time.perf_counter()
        await asyncio.gather(*(each.close() for each in asking))

    uvloop.run(run())
    return load
