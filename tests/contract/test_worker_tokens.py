"""What a job's token is good for, held against every method of every service: programs of users have one."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from servicekit.identity import job_token
from servicekit.interceptor import METHODS_OF_WORKERS, ContractInterceptor
from testkit.contract_surface import methods
from testkit.services import collect

SECRET = "s"


class AnswersAll(grpc.GenericRpcHandler):
    """Every method of the contract, with an answer for whoever comes through."""

    def __init__(self, found: dict[str, MethodDescriptor]) -> None:
        self._found = found

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = self._found[details.method]

        async def one(request: Any, context: Any) -> bytes:
            return b""

        async def many(request: Any, context: Any) -> Any:
            yield b""

        if method.client_streaming:
            if method.server_streaming:
                return grpc.stream_stream_rpc_method_handler(many)
            return grpc.stream_unary_rpc_method_handler(one)
        read = {"request_deserializer": bytes}
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(many, **read)
        return grpc.unary_unary_rpc_method_handler(one, **read)


async def code_of(channel: grpc.aio.Channel, path: str, method: MethodDescriptor, metadata: Any) -> grpc.StatusCode:
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(path)(iter([b""]) if method.client_streaming else b"", metadata=metadata)
    with suppress(grpc.aio.AioRpcError):
        await (collect(call) if method.server_streaming else call)
    return await call.code()


async def test_a_jobs_token_opens_the_reports_of_workers_and_nothing_else() -> None:
    found = {f"/{method.containing_service.full_name}/{method.name}": method for method in methods()}
    assert found.keys() >= METHODS_OF_WORKERS
    server = grpc.aio.server(interceptors=[ContractInterceptor(SECRET)])
    server.add_generic_rpc_handlers((AnswersAll(found),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    worker = (("x-dlmesh-job", "j1"), ("x-dlmesh-job-token", job_token(SECRET, "j1")))
    # Nor does naming a user beside it help.
    both = (*worker, ("x-dlmesh-user", "Admin"), ("x-dlmesh-admin", "1"), ("x-dlmesh-service", "training"))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for metadata in (worker, both):
                codes = {path: await code_of(channel, path, method, metadata) for path, method in found.items()}
                opened = {path for path, code in codes.items() if code is grpc.StatusCode.OK}
                assert opened == METHODS_OF_WORKERS
                assert {codes[path] for path in found.keys() - opened} == {grpc.StatusCode.PERMISSION_DENIED}
    finally:
        await server.stop(None)
