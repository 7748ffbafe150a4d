"""Pieces of Envoy's configuration that its parts share."""

from __future__ import annotations

import ipaddress
from importlib import resources
from typing import Any

from gateway_service.settings import GatewaySettings

Json = dict[str, Any]

HEADERS_FILTER = "envoy.filters.http.header_mutation"
CREDENTIALS_FILTER = "envoy.filters.http.lua"
AUTHORIZATION_FILTER = "envoy.filters.http.ext_authz"
BUFFER_FILTER = "envoy.filters.http.buffer"
TRANSCODER_FILTER = "envoy.filters.http.grpc_json_transcoder"
CREDENTIAL_HEADERS = ("authorization", "x-auth-token", "cookie")
MAX_CACHED_ENTRIES = 10_000
MAX_CONCURRENT = 4096
# What is kept of a request to send it again; a longer upload is not repeated once it has begun.
MAX_REPEATED_BYTES = 1024 * 1024
# So much of an HTTP/2 body is held before a filter says how much may be. A stream that was told to wait by then goes on
# only when it has less than half of what the filter allows: these are less than half of every filter's limit.
INSIDE_WINDOW_BYTES = 256 * 1024
PUBLIC_WINDOW_BYTES = 4 * 1024 * 1024


def typed(kind: str, **fields: Any) -> Json:
    """A message of the type `kind`."""
    return {"@type": f"type.googleapis.com/{kind}", **fields}


def make_filter(name: str, kind: str, **fields: Any) -> Json:
    """A filter called `name` with its settings."""
    return {"name": name, "typed_config": typed(kind, **fields)}


def script(settings: GatewaySettings, cache_salt: str, *names: str) -> str:
    """Lua files of this package one after the other, with the constants that all of them know."""
    constants = (
        f'local SALT = "{cache_salt}"\n'
        f"local TTL_MILLISECONDS = {settings.credential_cache_seconds * 1000:.0f}\n"
        f"local MAX_ENTRIES = {MAX_CACHED_ENTRIES}\n"
    )
    folder = resources.files("gateway_service.envoy")
    return constants + "".join(folder.joinpath(f"{name}.lua").read_text() for name in names)


def lua_filter(name: str, source: str) -> Json:
    """A filter that runs `source`."""
    return make_filter(name, "envoy.extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": source})


def router() -> Json:
    """The filter at the end of every chain."""
    return make_filter(
        "envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True
    )


def socket_address(host: str, port: int) -> Json:
    """A TCP address."""
    return {"socket_address": {"address": host, "port_value": port}}


def set_header(name: str, value: str) -> Json:
    """A header that replaces what was sent under its name."""
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def retries(number: int, *more_conditions: str) -> Json:
    """24 are about ten seconds of patience, enough for a service that is being restarted."""
    return {
        "retry_on": ",".join(("connect-failure", "refused-stream", "reset-before-request", *more_conditions)),
        "num_retries": number,
        "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
    }


def http2() -> Json:
    """Protocol options of a cluster that speaks HTTP/2."""
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    keepalive = {"connection_keepalive": {"interval": "30s", "timeout": "5s"}}
    return {name: typed(name, explicit_http_config={"http2_protocol_options": keepalive})}


def circuit_breakers(limit: int = MAX_CONCURRENT) -> Json:
    """At most `limit` of everything at a time; Envoy's default allows three retries in a whole cluster."""
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {"thresholds": [dict.fromkeys(limits, limit)]}


def internal_listener(name: str, *, routes: list[Json], filters: tuple[Json, ...] = (), **more: Any) -> Json:
    """A listener inside of Envoy: what it sends itself passes `filters` and goes where `routes` say."""
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        codec_type="HTTP2",
        http2_protocol_options={"initial_stream_window_size": INSIDE_WINDOW_BYTES},
        route_config={
            "name": name,
            "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}],
        },
        http_filters=[*filters, router()],
        **more,
    )
    return {
        "name": name,
        "internal_listener": {},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def internal_cluster(name: str) -> Json:
    """The way to the internal listener of the same name."""
    endpoint = {"address": {"envoy_internal_address": {"server_listener_name": name}}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
        "typed_extension_protocol_options": http2(),
        "circuit_breakers": circuit_breakers(),
    }


def is_address(host: str) -> bool:
    """Whether `host` is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
