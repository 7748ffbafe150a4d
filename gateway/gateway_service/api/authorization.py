"""Envoy's question: may this request pass, and who sent it?"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

import grpc
from dlmesh.gateway.authz.v3 import external_auth_pb2, external_auth_pb2_grpc
from google.protobuf import struct_pb2, wrappers_pb2
from google.rpc import code_pb2, status_pb2
from servicekit.errors import Code, ServiceError
from servicekit.identity import ADMIN_HEADER, SECRET_HEADER, USER_HEADER

from gateway_service.domain.credentials import read_credential
from gateway_service.usecases.authenticate import Authenticator, Verdict

HTTP_STATUS = {Code.UNAUTHENTICATED: 401, Code.PERMISSION_DENIED: 403}
CHALLENGE = 'Basic realm="dlmesh", charset="UTF-8"'


class AuthorizationServicer(external_auth_pb2_grpc.AuthorizationServicer):
    """envoy.service.auth.v3.Authorization; answers only a caller that knows the platform's secret."""

    def __init__(self, authenticator: Authenticator, secret: str) -> None:
        self._authenticator = authenticator
        self._secret = secret

    async def Check(
        self, request: external_auth_pb2.CheckRequest, context: grpc.aio.ServicerContext
    ) -> external_auth_pb2.CheckResponse:
        given = dict(context.invocation_metadata() or ()).get(SECRET_HEADER, "")
        if not hmac.compare_digest(str(given), self._secret):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "only the platform's Envoy may ask")
        http = request.attributes.request.http
        try:
            credential = read_credential(http.headers, http.method, http.path)
            verdict = await self._authenticator.authenticate(credential)
        except ServiceError as error:
            return _denied(error)
        return _allowed(verdict)


def _allowed(verdict: Verdict) -> external_auth_pb2.CheckResponse:
    admin = "1" if verdict.is_admin else "0"
    metadata = struct_pb2.Struct()
    metadata.update({"user": verdict.user, "admin": admin, "lifetime_milliseconds": verdict.lifetime_seconds * 1000})
    return external_auth_pb2.CheckResponse(
        status=status_pb2.Status(code=code_pb2.OK),
        ok_response=external_auth_pb2.OkHttpResponse(
            headers=_headers({USER_HEADER: verdict.user, ADMIN_HEADER: admin}),
            headers_to_remove=["authorization", "x-auth-token", "cookie"],
        ),
        dynamic_metadata=metadata,
    )


def _denied(error: ServiceError) -> external_auth_pb2.CheckResponse:
    status = HTTP_STATUS[error.code]
    # Envoy's local reply format makes the JSON error body of this text.
    return external_auth_pb2.CheckResponse(
        status=status_pb2.Status(code=int(error.code), message=error.message),
        denied_response=external_auth_pb2.DeniedHttpResponse(
            status=external_auth_pb2.HttpStatus(code=status),
            headers=_headers({"www-authenticate": CHALLENGE} if status == 401 else {}),
            body=error.message,
        ),
    )


def _headers(values: Mapping[str, str]) -> list[external_auth_pb2.HeaderValueOption]:
    return [
        external_auth_pb2.HeaderValueOption(
            header=external_auth_pb2.HeaderValue(key=key, value=value), append=wrappers_pb2.BoolValue(value=False)
        )
        for key, value in values.items()
    ]
