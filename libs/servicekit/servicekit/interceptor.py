"""The one interceptor of every service: identity, errors, contract status codes, audit and request log."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2, descriptor_pool
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from servicekit.errors import Code, ServiceError, forbidden
from servicekit.identity import Identity, acting_as, identity_from_headers
from servicekit.times import format_time, utc_now

log = logging.getLogger("servicekit.request")
audit = logging.getLogger("dlmesh.audit")

HTTP_CODE_HEADER = "x-http-code"
HTTP_EMPTY_HEADER = "x-http-empty"
# As HTTP calls it: the gateway lets it through as it is.
RETRY_AFTER_HEADER = "retry-after"
OPEN_SERVICES = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "envoy.service.auth.v3.Authorization",
)
# All that the token of a job is good for: programs of users hold it, and it never expires. Each asks require_job.
METHODS_OF_WORKERS = frozenset(
    {
        "/dlmesh.scheduling.v1.JobService/ReportJob",
        "/dlmesh.training.v1.MetricService/RecordMetrics",
    }
)
# POST because they carry a body; they change nothing, and come by the thousand.
METHODS_THAT_ONLY_ASK = frozenset(
    {
        "/dlmesh.inference.v1.KernelModelService/InvokeKernelModel",
        "/dlmesh.inference.v1.KernelModelService/TestKernelModel",
    }
)
STATUS_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class MethodContract:
    """What the proto says of a method's REST face."""

    mutating: bool
    headers: tuple[tuple[str, str], ...]


class ContractInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method; servicers only translate and call a use case."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or details.method.split("/")[1] in OPEN_SERVICES:
            return handler
        wrap = functools.partial(_Call, method=details.method, secret=self._secret)
        if handler.request_streaming:
            if handler.response_streaming:
                return _rebuild(grpc.stream_stream_rpc_method_handler, handler, wrap(handler.stream_stream).stream)
            return _rebuild(grpc.stream_unary_rpc_method_handler, handler, wrap(handler.stream_unary).unary)
        if handler.response_streaming:
            return _rebuild(grpc.unary_stream_rpc_method_handler, handler, wrap(handler.unary_stream).stream)
        return _rebuild(grpc.unary_unary_rpc_method_handler, handler, wrap(handler.unary_unary).unary)


class _Unreadable:
    """Stands for a request that is none."""


def _rebuild(make: Callable[..., Any], handler: Any, behaviour: Any) -> Any:
    def read(data: bytes) -> Any:
        # gRPC itself would answer UNKNOWN, which is 500 over REST: a path may hold %FF.
        try:
            return handler.request_deserializer(data)
        except DecodeError:
            return _Unreadable()

    return make(behaviour, request_deserializer=read, response_serializer=handler.response_serializer)


class _Call:
    def __init__(self, behaviour: Any, *, method: str, secret: str) -> None:
        self._behaviour = behaviour
        self._method = method
        self._secret = secret
        self._contract = method_contract(method)

    async def unary(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        started = time.monotonic()
        identity = await self._identify(context)
        with acting_as(identity):
            try:
                _check_worker(identity, self._method)
                response = await self._behaviour(_readable(request), context)
            except ServiceError as error:
                self._record(identity, context, started, error.code.name)
                await _refuse(context, error)
            except Exception as error:
                self._record(identity, context, started, "INTERNAL")
                await _fail(context, self._method, error)
            else:
                if self._contract.headers:
                    await context.send_initial_metadata(self._contract.headers)
                self._record(identity, context, started, "OK")
                return response

    async def stream(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        started = time.monotonic()
        identity = await self._identify(context)
        with acting_as(identity):
            try:
                _check_worker(identity, self._method)
                async for response in self._behaviour(_readable(request), context):
                    yield response
            except ServiceError as error:
                self._record(identity, context, started, error.code.name)
                await _refuse(context, error)
            except Exception as error:
                self._record(identity, context, started, "INTERNAL")
                await _fail(context, self._method, error)
            else:
                self._record(identity, context, started, "OK")

    async def _identify(self, context: grpc.aio.ServicerContext) -> Identity:
        headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        try:
            return identity_from_headers(headers, self._secret)
        except ServiceError as error:
            await _refuse(context, error)
            raise AssertionError("abort raises") from error

    def _record(self, identity: Identity, context: grpc.aio.ServicerContext, started: float, result: str) -> None:
        milliseconds = (time.monotonic() - started) * 1000
        log.debug("%s %s %s %.1f ms", self._method, identity.user, result, milliseconds)
        if not self._contract.mutating:
            return
        headers = dict(context.invocation_metadata() or ())
        audit.info(
            json.dumps(
                {
                    "when": format_time(utc_now()),
                    "who": identity.user,
                    "what": self._method,
                    # What follows is the caller's: tokens, and command lines with passwords.
                    "path": headers.get("x-envoy-original-path", "").partition("?")[0],
                    "from": headers.get("x-forwarded-for", "") or context.peer(),
                    "result": result,
                    "milliseconds": round(milliseconds, 1),
                }
            )
        )


def _check_worker(identity: Identity, method: str) -> None:
    if identity.job_id is not None and method not in METHODS_OF_WORKERS:
        raise forbidden("a job's token is for reports of the job's workers only")


def _readable(request: Any) -> Any:
    """The request, or the stream of them, once it is known to be one."""
    if isinstance(request, AsyncIterator):
        return _each_readable(request)
    if isinstance(request, _Unreadable):
        raise ServiceError(
            Code.INVALID_ARGUMENT, "UNREADABLE", "the request (its path or query) holds text that is not UTF-8"
        )
    return request


async def _each_readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _readable(request)


@functools.cache
def method_contract(method: str) -> MethodContract:
    """Read the `http_contract` and `http` options of `/package.Service/Method` from its descriptor."""
    service_name, method_name = method.strip("/").split("/")
    pool = descriptor_pool.Default()
    try:
        descriptor = pool.FindServiceByName(service_name).FindMethodByName(method_name)
    except KeyError:
        return MethodContract(mutating=False, headers=())
    from dlmesh.api.v1 import annotations_pb2
    from google.api import annotations_pb2 as http_annotations

    options = descriptor.GetOptions()
    headers: list[tuple[str, str]] = []
    contract = options.Extensions[annotations_pb2.http_contract]
    if contract.success not in (0, 200):
        headers.append((HTTP_CODE_HEADER, str(contract.success)))
    if descriptor.output_type.full_name == "google.protobuf.Empty":
        headers.append((HTTP_EMPTY_HEADER, "1"))
    rule = options.Extensions[http_annotations.http]
    is_write = rule.WhichOneof("pattern") in {"post", "put", "delete", "patch"}
    return MethodContract(mutating=is_write and method not in METHODS_THAT_ONLY_ASK, headers=tuple(headers))


async def _refuse(context: grpc.aio.ServicerContext, error: ServiceError) -> None:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain="dlmesh", metadata=error.metadata)
    detail = any_pb2.Any()
    detail.Pack(info)
    status = status_pb2.Status(code=int(error.code), message=error.message, details=[detail])
    trailing: list[tuple[str, Any]] = [(STATUS_DETAILS_KEY, status.SerializeToString())]
    if error.http_code is not None:
        trailing.append((HTTP_CODE_HEADER, str(error.http_code)))
    if error.retry_after_seconds is not None:
        trailing.append((RETRY_AFTER_HEADER, str(error.retry_after_seconds)))
    await context.abort(_GRPC_CODES[error.code], error.message, tuple(trailing))


async def _fail(context: grpc.aio.ServicerContext, method: str, error: Exception) -> None:
    # abort() itself raises; a servicer must not call it, so what comes here is a defect and is logged whole.
    if isinstance(error, grpc.aio.AbortError | grpc.aio.BaseError):
        raise error
    log.error("%s failed", method, exc_info=error)
    await _refuse(context, ServiceError(Code.INTERNAL, "INTERNAL", "internal error; the service's log has the details"))


_GRPC_CODES = {code: status for status in grpc.StatusCode for code in Code if status.value[0] == int(code)}
