"""Envoy's bootstrap configuration (v3 API) as one plain dictionary.

A request walks: header_mutation (drops identity headers a client may have forged) > lua (recognises credentials
verified within the last seconds) > ext_authz (asks the gateway service) > buffer (bounds what is not streamed) >
grpc_json_transcoder > router; one to Triton walks another way (`inference`). An answer walks back the same way, so the
lua filter sees it last and sets the HTTP status that the contract documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from servicekit.identity import SECRET_HEADER, SERVICE_HEADER
from servicekit.settings import DEFAULT_PORTS

from gateway_service.envoy.blocks import (
    AUTHORIZATION_FILTER,
    BUFFER_FILTER,
    CREDENTIAL_HEADERS,
    CREDENTIALS_FILTER,
    HEADERS_FILTER,
    MAX_REPEATED_BYTES,
    PUBLIC_WINDOW_BYTES,
    TRANSCODER_FILTER,
    Json,
    circuit_breakers,
    http2,
    internal_cluster,
    internal_listener,
    is_address,
    lua_filter,
    make_filter,
    retries,
    router,
    script,
    set_header,
    socket_address,
    typed,
)
from gateway_service.envoy.inference import (
    admission_listener,
    inference_clusters,
    inference_filter,
    inference_listener,
    inference_routes,
)
from gateway_service.envoy.overload import overload_manager
from gateway_service.envoy.replies import local_replies
from gateway_service.envoy.surface import PublicMethod, PublicSurface
from gateway_service.settings import GatewaySettings

HEALTH_PATH = "/healthz"
HEALTH_SERVICE = "dlmesh.gateway.v1.PlatformHealthService"
# The transcoder's limits for one message; also how much of a streamed body it may hold while a slow peer reads.
MAX_REQUEST_BYTES = 16 * 1024 * 1024
MAX_RESPONSE_BYTES = 64 * 1024 * 1024
PATIENT = "authorization"
UNARY_TIMEOUT = "60s"
IDLE_TIMEOUT = "300s"


def render_config(settings: GatewaySettings, surface: PublicSurface, *, cache_salt: str) -> Json:
    """The whole configuration. `cache_salt` (hex, secret) keys the digests of the credential cache."""
    config: Json = {
        "static_resources": {
            "listeners": [
                _listener(settings, surface, cache_salt),
                _patient_listener(),
                inference_listener(settings, _authorization(settings), cache_salt),
                admission_listener(settings, surface.descriptor_path),
            ],
            "clusters": [
                *(_cluster(name, settings) for name in DEFAULT_PORTS),
                internal_cluster(PATIENT),
                *inference_clusters(settings),
            ],
        },
        # Asked for by the subscriptions to the files of Triton's addresses.
        "node": {"id": "gateway", "cluster": "dlmesh"},
        "bootstrap_extensions": [
            make_filter(
                "envoy.bootstrap.internal_listener",
                "envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
            )
        ],
        "overload_manager": overload_manager(settings),
    }
    if settings.envoy_admin_port is not None:
        config["admin"] = {"address": socket_address("127.0.0.1", settings.envoy_admin_port)}
    return config


def _listener(settings: GatewaySettings, surface: PublicSurface, cache_salt: str) -> Json:
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="public",
        codec_type="AUTO",
        use_remote_address=True,
        normalize_path=True,
        path_with_escaped_slashes_action="KEEP_UNCHANGED",  # a file name may hold %2F
        server_header_transformation="PASS_THROUGH",
        max_request_headers_kb=32,
        request_headers_timeout="10s",
        stream_idle_timeout=IDLE_TIMEOUT,
        always_set_request_id_in_response=True,
        common_http_protocol_options={"max_headers_count": 100, "idle_timeout": "3600s"},
        http2_protocol_options={
            "max_concurrent_streams": 1024,
            "initial_stream_window_size": PUBLIC_WINDOW_BYTES,
            "connection_keepalive": {"interval": "60s", "timeout": "20s"},
        },
        access_log=[_access_log(settings.access_log)],
        local_reply_config=local_replies(MAX_REQUEST_BYTES, settings.max_inference_bytes),
        route_config=_routes(settings, surface, cache_salt),
        # Before a route is looked for: routes look at such headers.
        early_header_mutation_extensions=[
            make_filter(
                "envoy.http.early_header_mutation.header_mutation",
                "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                mutations=_FORGEABLE,
            )
        ],
        http_filters=[
            make_filter(
                HEADERS_FILTER,
                "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
                mutations={"request_mutations": _FORGEABLE},
            ),
            inference_filter(settings, cache_salt) | {"disabled": True},
            lua_filter(CREDENTIALS_FILTER, _lua_source(settings, cache_salt, surface.wire_names)),
            _authorization(settings),
            # The transcoder makes one message of a JSON body however long it is.
            make_filter(
                BUFFER_FILTER,
                "envoy.extensions.filters.http.buffer.v3.Buffer",
                max_request_bytes=MAX_REQUEST_BYTES,
            ),
            make_filter(
                TRANSCODER_FILTER,
                "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
                proto_descriptor=str(surface.descriptor_path),
                services=list(surface.transcoded_services),
                convert_grpc_status=True,
                # A query's ?name= would win over the {name} of the path.
                ignored_query_parameters=["csrftoken", *surface.path_variables],
                url_unescape_spec="ALL_CHARACTERS",
                # Forms, and most clients, send a blank of a query so.
                query_param_unescape_plus=True,
                request_validation_options={
                    "reject_unknown_method": True,
                    "reject_unknown_query_parameters": True,
                    # So would a body's {"name": ...}.
                    "reject_binding_body_field_collisions": True,
                },
                # Empty lists are printed; scalars of responses are `optional`, so these are printed when they were set.
                print_options={"always_print_primitive_fields": True},
                max_request_body_size=MAX_REQUEST_BYTES,
                max_response_body_size=MAX_RESPONSE_BYTES,
            ),
            router(),
        ],
    )
    return {
        "name": "public",
        "address": socket_address(settings.http_host, settings.http_port),
        "per_connection_buffer_limit_bytes": 1024 * 1024,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


_FORGEABLE: list[Json] = [
    {"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in ("x-dlmesh-", "x-envoy-")
]


def _lua_source(settings: GatewaySettings, cache_salt: str, wire_names: dict[str, str]) -> str:
    names = ", ".join(f'["{name}"] = "{wire}"' for name, wire in wire_names.items())
    return f"local WIRE_NAMES = {{ {names} }}\n" + script(settings, cache_salt, "credentials", "gateway")


def _authorization(settings: GatewaySettings) -> Json:
    return make_filter(
        AUTHORIZATION_FILTER,
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        transport_api_version="V3",
        grpc_service={
            "envoy_grpc": {"cluster_name": PATIENT},
            "timeout": "20s",
            "initial_metadata": [{"key": SECRET_HEADER, "value": settings.service.secret}],
        },
        allowed_headers={"patterns": [{"exact": name} for name in CREDENTIAL_HEADERS]},
        status_on_error={"code": "ServiceUnavailable"},
        # Asked unless the lua filter vouches: a script that failed, or never ran, leaves the check in force.
        filter_enabled_metadata={
            "filter": "dlmesh.auth",
            "path": [{"key": "verified"}],
            "value": {"bool_match": True},
            "invert": True,
        },
    )


def _patient_listener() -> Json:
    """ext_authz does not retry by itself: it asks through this listener inside of Envoy, whose route does."""
    ask = {"cluster": "gateway", "timeout": "20s", "retry_policy": retries(24, "reset")}
    return internal_listener(PATIENT, routes=[{"match": {"prefix": "/"}, "route": ask}])


def _routes(settings: GatewaySettings, surface: PublicSurface, cache_salt: str) -> Json:
    open_health: Json = {
        "match": {"path": HEALTH_PATH, "headers": [{"name": ":method", "string_match": {"exact": "GET"}}]},
        "route": {"cluster": "gateway"},
        "typed_per_filter_config": {
            AUTHORIZATION_FILTER: typed("envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute", disabled=True)
        },
    }
    # The order matters: exact paths before their service's prefix. The last route exists so that every request has one
    # before transcoding: without a route Envoy skips ext_authz, and would let the transcoded request through.
    every_path: Json = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 404, "body": {"inline_string": "no such path"}},
    }
    return {
        "name": "public",
        "virtual_hosts": [
            {
                "name": "public",
                "domains": ["*"],
                "request_body_buffer_limit": MAX_REPEATED_BYTES,
                "routes": [
                    *inference_routes(settings, cache_salt),
                    open_health,
                    *(route | _UNBUFFERED for route in _signed(_grpc_routes(surface.methods), settings)),
                    *({**every_path, "match": match} | _UNBUFFERED for match in _upload_matches(surface.methods)),
                    every_path,
                ],
            }
        ],
    }


def _signed(routes: list[Json], settings: GatewaySettings) -> list[Json]:
    """Routes to services of the platform, and to nobody else, carry its secret."""
    secret = set_header(SECRET_HEADER, settings.service.secret)
    return [route | {"request_headers_to_add": [secret, *route.get("request_headers_to_add", ())]} for route in routes]


_UNBUFFERED: Json = {
    "typed_per_filter_config": {
        BUFFER_FILTER: typed("envoy.extensions.filters.http.buffer.v3.BufferPerRoute", disabled=True)
    }
}


def _upload_matches(methods: Iterable[PublicMethod]) -> list[Json]:
    """Where the REST uploads arrive; they stream through without being held."""
    return [
        {
            "safe_regex": {"regex": re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(template))},
            "headers": [{"name": ":method", "string_match": {"exact": verb.upper()}}],
        }
        for method in methods
        if method.is_upload
        for verb, template in method.rest
    ]


def _grpc_routes(methods: Iterable[PublicMethod]) -> list[Json]:
    exact, prefixes = [], {}
    for method in methods:
        if method.service == HEALTH_SERVICE:
            # Answered at once, also when it is bad news; the caller may be a probe without credentials, in whose place
            # the gateway asks.
            exact.append(
                {
                    "match": {"path": method.grpc_path},
                    "route": {"cluster": method.peer, "timeout": "5s"},
                    "request_headers_to_add": [set_header(SERVICE_HEADER, "gateway")],
                }
            )
            continue
        if method.is_read or method.is_long:
            action: Json = {"cluster": method.peer, "timeout": "0s" if method.is_long else UNARY_TIMEOUT}
            if not method.rest:
                # Both sides may be silent for as long as they like; that the client lives, pings say.
                action["idle_timeout"] = "0s"
            elif method.silent_seconds:
                action["idle_timeout"] = f"{method.silent_seconds}s"
            # A read may be repeated though the service died over it; a write only when it never reached the service.
            action["retry_policy"] = retries(24, "reset") if method.is_read else retries(24)
            exact.append({"match": {"path": method.grpc_path}, "route": action})
        prefixes[method.service] = {
            "match": {"prefix": f"/{method.service}/"},
            "route": {"cluster": method.peer, "timeout": UNARY_TIMEOUT, "retry_policy": retries(24)},
        }
    return [*exact, *prefixes.values()]


def _cluster(name: str, settings: GatewaySettings) -> Json:
    host, _, port = settings.service.peers[name].rpartition(":")
    host = host.strip("[]")
    return {
        "name": name,
        "type": "STATIC" if is_address(host) else "STRICT_DNS",
        "connect_timeout": "2s",
        "per_connection_buffer_limit_bytes": 1024 * 1024,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(host, int(port))}}]}],
        },
        "typed_extension_protocol_options": http2(),
        "circuit_breakers": circuit_breakers(),
        # Only a hint with one endpoint a service (Envoy still tries an unhealthy only endpoint); with several replicas
        # behind one name it is what takes a dead one out.
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "2s",
                "no_traffic_interval": "5s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
    }


# Who asked for inference and was not known yet, the script hears with the answer.
_USER = "%COALESCE({})%".format(
    json.dumps(
        {
            "operators": [
                {"command": "REQ", "param": "x-dlmesh-user"},
                {"command": "DYNAMIC_METADATA", "param": "dlmesh.auth:user"},
            ]
        }
    )
)


def _access_log(path: str) -> Json:
    # The path without its query: a csrftoken may stand there.
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": typed(
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            path=path,
            log_format={
                "json_format": {
                    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
                    "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
                    "path": "%PATH(NQ:ORIG_OR_PATH)%",
                    "status": "%RESPONSE_CODE%",
                    "user": _USER,
                    "from": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                    "request_id": "%REQ(X-REQUEST-ID)%",
                    "milliseconds": "%DURATION%",
                    "received_bytes": "%BYTES_RECEIVED%",
                    "sent_bytes": "%BYTES_SENT%",
                    "details": "%RESPONSE_CODE_DETAILS%",
                    "upstream": "%UPSTREAM_CLUSTER%",
                }
            },
        ),
    }
