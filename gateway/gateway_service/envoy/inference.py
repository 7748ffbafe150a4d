"""The way to Triton: the Open Inference Protocol (KServe v2) over REST and gRPC.

After the caller is known, `inference.lua` finds the model that a request means, asks the inference service whether the
caller may infer with it, chooses a version and marks the request. Only a marked request has a route to Triton: what the
script does not understand, and a script that fails, end at a route that refuses.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from servicekit.identity import ADMIN_HEADER, SECRET_HEADER

from gateway_service.envoy.blocks import (
    BUFFER_FILTER,
    TRANSCODER_FILTER,
    Json,
    circuit_breakers,
    http2,
    internal_cluster,
    internal_listener,
    make_filter,
    retries,
    set_header,
    typed,
)
from gateway_service.envoy.endpoints import TRITON_GRPC, TRITON_HTTP, endpoints_file, endpoints_folder
from gateway_service.envoy.replies import GRPC_CODE_OF_STATUS, GRPC_INFERENCE, REST_INFERENCE
from gateway_service.settings import GatewaySettings

FILTER = "dlmesh.inference"
MARK = "x-dlmesh-triton"
ADMISSION = "admission"
ADMISSION_SERVICE = "dlmesh.inference.v1.AdmissionService"
# A model that was idle is loaded first.
ADMISSION_SECONDS = 60
MAX_WAITING_ADMISSIONS = 512
MAX_CACHED_ADMISSIONS = 10_000


def inference_filter() -> Json:
    """The script; a route turns it on."""
    source = resources.files("gateway_service.envoy").joinpath("inference.lua").read_text()
    codes = ", ".join(f'["{status}"] = {code}' for status, code in GRPC_CODE_OF_STATUS.items())
    constants = (
        f'local MARK = "{MARK}"\n'
        f'local ADMISSION_CLUSTER = "{ADMISSION}"\n'
        f'local ADMISSION_PATH = "/{ADMISSION_SERVICE}/AdmitInference"\n'
        f"local ADMISSION_MILLISECONDS = {ADMISSION_SECONDS * 1000}\n"
        f"local MAX_ENTRIES = {MAX_CACHED_ADMISSIONS}\n"
        f"local CODE_OF_STATUS = {{ {codes} }}\n"
    )
    lua = make_filter(
        FILTER,
        "envoy.extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": constants + source},
    )
    return lua | {"disabled": True}


def inference_routes(settings: GatewaySettings) -> list[Json]:
    """Marked requests go to Triton, others end here; the first to fit is taken."""
    faces: tuple[tuple[Json, str, str], ...] = (
        ({"safe_regex": {"regex": f"{REST_INFERENCE}(/.*)?"}}, "rest", TRITON_HTTP),
        ({"prefix": GRPC_INFERENCE}, "grpc", TRITON_GRPC),
    )
    filters = {
        FILTER: typed("envoy.config.route.v3.FilterConfig", config={}),
        TRANSCODER_FILTER: typed("envoy.config.route.v3.FilterConfig", disabled=True),
        BUFFER_FILTER: typed(
            "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
            buffer={"max_request_bytes": settings.max_inference_bytes},
        ),
    }
    limits: Json = {
        "typed_per_filter_config": filters,
        "request_body_buffer_limit": settings.max_inference_bytes,
    }
    refusal: Json = {"status": 503, "body": {"inline_string": "the request could not be admitted"}}
    routes = []
    for match, mark, cluster in faces:
        action: Json = {
            "cluster": cluster,
            "timeout": f"{settings.inference_timeout_seconds:g}s",
            # Inference changes nothing: it may be repeated though Triton died over it.
            "retry_policy": retries(24, "reset"),
        }
        admitted = match | {"headers": [{"name": MARK, "string_match": {"exact": mark}}]}
        routes += [
            {"match": admitted, "route": action, "request_headers_to_remove": [MARK, ADMIN_HEADER], **limits},
            {"match": match, "direct_response": refusal, **limits},
        ]
    return routes


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
    return internal_listener(ADMISSION, route={"route": ask, "request_headers_to_add": [secret]}, filters=(transcoder,))


def admission_cluster(settings: GatewaySettings) -> Json:
    """The way there; of requests beyond the limit each is refused at once."""
    return internal_cluster(ADMISSION, min(MAX_WAITING_ADMISSIONS, settings.max_inference_requests))


def triton_clusters(settings: GatewaySettings) -> list[Json]:
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
