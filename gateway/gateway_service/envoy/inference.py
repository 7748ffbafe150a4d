"""The way to Triton: the Open Inference Protocol (KServe v2) over REST and gRPC.

A request of a caller that is known takes the fast way: one script (`inference.lua`) finds the model that is meant, asks
the inference service whether the caller may infer with it, chooses a version and marks the request. Only a marked
request has a route to Triton. Any other goes to a listener inside, through ext_authz to the same script. What it does
not understand there, and a script that fails, end at a route that refuses.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from servicekit.identity import SECRET_HEADER

from gateway_service.envoy.blocks import (
    AUTHORIZATION_FILTER,
    BUFFER_FILTER,
    CREDENTIAL_HEADERS,
    CREDENTIALS_FILTER,
    HEADERS_FILTER,
    TRANSCODER_FILTER,
    Json,
    circuit_breakers,
    http2,
    internal_cluster,
    internal_listener,
    lua_filter,
    make_filter,
    retries,
    script,
    set_header,
    typed,
)
from gateway_service.envoy.endpoints import TRITON_GRPC, TRITON_HTTP, endpoints_file, endpoints_folder
from gateway_service.envoy.replies import GRPC_CODE_OF_STATUS, GRPC_INFERENCE, REST_INFERENCE, local_replies
from gateway_service.settings import GatewaySettings

FILTER = "dlmesh.inference"
MARK = "x-dlmesh-triton"
INSIDE = "inference_inside"
ADMISSION = "admission"
ADMISSION_SERVICE = "dlmesh.inference.v1.AdmissionService"
# A model that was idle is loaded first.
ADMISSION_SECONDS = 60
# A body that is held and a little too large is refused by the script, which says so at once.
SLACK_BYTES = 1024 * 1024


def inference_filter(settings: GatewaySettings, cache_salt: str, *, is_inside: bool = False) -> Json:
    """The script."""
    codes = ", ".join(f'["{status}"] = {code}' for status, code in GRPC_CODE_OF_STATUS.items())
    constants = (
        f'local MARK, REST_MARK, GRPC_MARK = "{MARK}", "{_mark("rest", cache_salt)}", "{_mark("grpc", cache_salt)}"\n'
        f"local IS_INSIDE = {str(is_inside).lower()}\n"
        f'local ADMISSION_CLUSTER = "{ADMISSION}"\n'
        f'local ADMISSION_PATH = "/{ADMISSION_SERVICE}/AdmitInference"\n'
        f"local ADMISSION_MILLISECONDS = {ADMISSION_SECONDS * 1000}\n"
        f"local MAX_BYTES = {settings.max_inference_bytes}\n"
        f"local CODE_OF_STATUS = {{ {codes} }}\n"
    )
    return lua_filter(
        FILTER, constants + script(settings, cache_salt, "credentials", "admissions", "bodies", "inference")
    )


def _mark(face: str, secret: str) -> str:
    """Not to be guessed, should a header of a client ever get as far as the routes."""
    return hmac.new(secret.encode(), f"mark:{face}".encode(), hashlib.sha256).hexdigest()


def inference_routes(settings: GatewaySettings, cache_salt: str) -> list[Json]:
    """Of the public listener, the first that fits counts: marked requests go to Triton, others inside."""
    filters = {FILTER: typed("envoy.config.route.v3.FilterConfig", config={})}
    for name in (HEADERS_FILTER, CREDENTIALS_FILTER, AUTHORIZATION_FILTER, BUFFER_FILTER, TRANSCODER_FILTER):
        filters[name] = typed("envoy.config.route.v3.FilterConfig", disabled=True)
    inside: Json = {"route": {"cluster": INSIDE, "timeout": "0s"}}
    return [route | {"typed_per_filter_config": filters} for route in _routes(settings, cache_salt, inside)]


def inference_listener(settings: GatewaySettings, authorization: Json, cache_salt: str) -> Json:
    """The listener inside: the filter `authorization` finds out who calls, then the script runs."""
    refusal = {"direct_response": {"status": 503, "body": {"inline_string": "the request could not be admitted"}}}
    return internal_listener(
        INSIDE,
        routes=_routes(settings, cache_salt, refusal),
        # A limit of a route that refuses counts for nothing: a filter bounds what the script holds.
        filters=(
            authorization,
            make_filter(
                BUFFER_FILTER,
                "envoy.extensions.filters.http.buffer.v3.Buffer",
                max_request_bytes=settings.max_inference_bytes + SLACK_BYTES,
            ),
            inference_filter(settings, cache_salt, is_inside=True),
        ),
        local_reply_config=local_replies(settings.max_inference_bytes, settings.max_inference_bytes),
    )


def _routes(settings: GatewaySettings, cache_salt: str, unmarked: Json) -> list[Json]:
    faces: tuple[tuple[Json, str, str], ...] = (
        ({"safe_regex": {"regex": f"{REST_INFERENCE}(/.*)?"}}, "rest", TRITON_HTTP),
        ({"prefix": GRPC_INFERENCE}, "grpc", TRITON_GRPC),
    )
    routes = []
    for match, face, cluster in faces:
        to_triton: Json = {
            "cluster": cluster,
            "timeout": f"{settings.inference_timeout_seconds:g}s",
            # Repeated only while it has not reached Triton: what Triton died over may kill the next one, too.
            "retry_policy": retries(24),
        }
        marked = match | {"headers": [{"name": MARK, "string_match": {"exact": _mark(face, cache_salt)}}]}
        routes += [
            {"match": marked, "route": to_triton, "request_headers_to_remove": [MARK, *CREDENTIAL_HEADERS]},
            {"match": match, **unmarked},
        ]
    return [route | {"request_body_buffer_limit": settings.max_inference_bytes + SLACK_BYTES} for route in routes]


def admission_listener(settings: GatewaySettings, descriptor_path: Path) -> Json:
    """Through this listener inside of Envoy the script asks AdmissionService, in JSON and with patience."""
    transcoder = make_filter(
        TRANSCODER_FILTER,
        "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        proto_descriptor=str(descriptor_path),
        services=[ADMISSION_SERVICE],
        auto_mapping=True,
        convert_grpc_status=True,
    )
    ask = {"cluster": "inference", "timeout": f"{ADMISSION_SECONDS}s", "retry_policy": retries(24, "reset")}
    secret = set_header(SECRET_HEADER, settings.service.secret)
    return internal_listener(
        ADMISSION,
        routes=[{"match": {"prefix": "/"}, "route": ask, "request_headers_to_add": [secret]}],
        filters=(transcoder,),
    )


def inference_clusters(settings: GatewaySettings) -> list[Json]:
    """The ways to these listeners and to Triton."""
    return [internal_cluster(INSIDE), internal_cluster(ADMISSION), *_triton_clusters(settings)]


def _triton_clusters(settings: GatewaySettings) -> list[Json]:
    """Triton's two ports, wherever it is at the moment."""
    return [
        _triton_cluster(TRITON_HTTP, settings),
        _triton_cluster(TRITON_GRPC, settings) | {"typed_extension_protocol_options": http2()},
    ]


def _triton_cluster(name: str, settings: GatewaySettings) -> Json:
    home = settings.service.home
    return {
        "name": name,
        "type": "EDS",
        "connect_timeout": "2s",
        "per_connection_buffer_limit_bytes": 1024 * 1024,
        "eds_cluster_config": {
            "eds_config": {
                "resource_api_version": "V3",
                "path_config_source": {
                    "path": str(endpoints_file(home, name)),
                    "watched_directory": {"path": str(endpoints_folder(home))},
                },
            }
        },
        "circuit_breakers": circuit_breakers(settings.max_inference_requests),
    }
