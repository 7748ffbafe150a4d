"""Calling a peer service: kept channels, signed calls, patience while the peer restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from servicekit.errors import Code, ServiceError
from servicekit.identity import Identity, current_identity, headers_for
from servicekit.settings import ServiceSettings

Stub = TypeVar("Stub")
Result = TypeVar("Result")

PATIENCE_SECONDS = 20.0
# What a peer that lives may take for its answer; REST requests that are no uploads have as long.
TIMEOUT_SECONDS = 60.0
# Loops come back by themselves; a request of a user waits the usual while.
LOOP_PATIENCE_SECONDS, LOOP_TIMEOUT_SECONDS = 1.0, 20.0
# Metadata hold the path of a REST request as the gateway's 32 KiB of headers let it through, more than once; an error
# about a name in it has that name in its details.
METADATA_OPTIONS = (
    ("grpc.max_metadata_size", 128 * 1024),
    ("grpc.absolute_max_metadata_size", 256 * 1024),
)
CHANNEL_OPTIONS = (
    *METADATA_OPTIONS,
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # A restarted peer must be found again within a fraction of a second, not after the default two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30000),
)


class Channels:
    """Channels to the peers, opened on first use and kept."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._channels: dict[str, grpc.aio.Channel] = {}

    def stub(self, peer: str, stub_class: Callable[[grpc.aio.Channel], Stub]) -> Stub:
        """A stub whose calls carry our secret and the current identity (this service's own outside of a request)."""
        channel = self._channels.get(peer)
        if channel is None:
            signer = _Signer(self._settings)
            channel = grpc.aio.insecure_channel(
                self._settings.peers[peer],
                options=CHANNEL_OPTIONS,
                interceptors=[_SignUnary(signer), _SignStream(signer), _SignUpload(signer)],
            )
            self._channels[peer] = channel
        return stub_class(channel)

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()


async def call_peer(
    call: Callable[[], Awaitable[Result]],
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Result:
    """Await `call()`, again while the peer is unreachable (it may be restarting); its refusals come back as
    `ServiceError`. `call` must be safe to repeat. 503 when the peer stays away, 504 when it has not answered one call
    after `timeout_seconds`."""
    deadline = time.monotonic() + patience_seconds
    pause = 0.05
    while True:
        try:
            async with asyncio.timeout(timeout_seconds):
                return await call()
        except TimeoutError as error:
            message = f"another service of the platform has not answered within {timeout_seconds:g} s"
            raise ServiceError(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", message) from error
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() + pause > deadline:
                raise as_service_error(error) from error
        await asyncio.sleep(pause)
        pause = min(pause * 2, 1.0)


async def call_from_loop(call: Callable[[], Awaitable[Result]]) -> Result:
    """As `call_peer`, with less patience: for what is tried again anyway."""
    return await call_peer(call, patience_seconds=LOOP_PATIENCE_SECONDS, timeout_seconds=LOOP_TIMEOUT_SECONDS)


def as_service_error(error: grpc.aio.AioRpcError) -> ServiceError:
    """The peer's refusal as our own error, reason and metadata kept."""
    reason, metadata = error.code().name, {}
    # An AioRpcError has what from_call reads of a Call.
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
    number = error.code().value[0]
    code = Code(number) if number in Code._value2member_map_ else Code.INTERNAL
    return ServiceError(code, reason, error.details() or code.name, metadata)


class _Signer:
    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings

    def sign(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        try:
            identity = current_identity()
        except ServiceError:
            identity = Identity.service(self._settings.name)
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        for key, value in headers_for(identity, self._settings.secret, self._settings.name):
            metadata.add(key, value)
        return details._replace(metadata=metadata)


class _SignUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, signer: _Signer) -> None:
        self._signer = signer

    async def intercept_unary_unary(self, continuation: Any, details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        return await continuation(self._signer.sign(details), request)


class _SignStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, signer: _Signer) -> None:
        self._signer = signer

    async def intercept_unary_stream(self, continuation: Any, details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        return await continuation(self._signer.sign(details), request)


class _SignUpload(grpc.aio.StreamUnaryClientInterceptor):
    def __init__(self, signer: _Signer) -> None:
        self._signer = signer

    async def intercept_stream_unary(self, continuation: Any, details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        return await continuation(self._signer.sign(details), request)
