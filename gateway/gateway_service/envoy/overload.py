"""What Envoy refuses, and gives up, before it takes more memory than it may."""

from __future__ import annotations

from gateway_service.envoy.blocks import Json, make_filter
from gateway_service.settings import GatewaySettings

MAX_CONNECTIONS = 10_000
HEAP = "envoy.resource_monitors.fixed_heap"
# Shares of the memory. Who is there may go on at first.
FULL, OVER = 0.85, 0.95


def overload_manager(settings: GatewaySettings) -> Json:
    """Requests are held in Envoy (bodies up to `max_inference_bytes`): all of them together are bounded here."""
    return {
        "refresh_interval": "0.1s",
        "resource_monitors": [
            make_filter(
                "envoy.resource_monitors.global_downstream_max_connections",
                "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=MAX_CONNECTIONS,
            ),
            make_filter(
                HEAP,
                "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                max_heap_size_bytes=settings.envoy_memory_bytes,
            ),
        ],
        "actions": [
            _at("envoy.overload_actions.shrink_heap", {"threshold": {"value": FULL}}),
            _at("envoy.overload_actions.stop_accepting_requests", {"threshold": {"value": FULL}}),
        ],
        # Not streams but connections on which more arrives: to reset a stream of HTTP/1 leaves its client without an
        # answer and without an end.
        "loadshed_points": [
            _at("envoy.load_shed_points.http1_server_abort_dispatch", {"threshold": {"value": OVER}}),
            _at("envoy.load_shed_points.http2_server_go_away_and_close_on_dispatch", {"threshold": {"value": OVER}}),
        ],
    }


def _at(name: str, when: Json) -> Json:
    return {"name": name, "triggers": [{"name": HEAP, **when}]}
