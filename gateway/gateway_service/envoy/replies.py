"""What Envoy answers itself, in the one error shape of the platform; a gRPC client gets the bare message."""

from __future__ import annotations

from collections.abc import Iterator

from gateway_service.envoy.blocks import Json

# HTTP status of an answer that Envoy gives itself -> gRPC code in its JSON body.
GRPC_CODE_OF_STATUS = {
    400: 3,
    401: 16,
    403: 7,
    404: 5,
    405: 12,
    408: 4,
    409: 10,
    413: 8,
    415: 3,
    429: 8,
    431: 8,
    500: 13,
    501: 12,
    502: 14,
    503: 14,
    504: 4,
}
REPEATABLE = (429, 503)
REST_INFERENCE, GRPC_INFERENCE = "/v2", "/inference.GRPCInferenceService/"
AWAY = ["UH", "UF", "UC", "UR", "URX"]
TRITON_IS_AWAY = "Triton is switched off, away or restarting: try again in a moment"
TRITON_IS_FULL = "too many requests wait for Triton: try again in a moment"


def local_replies(max_bytes: int, max_inference_bytes: int) -> Json:
    """The local_reply_config of the public listener; the first mapper that fits is taken.

    A request may be `max_bytes` long, one of the Open Inference Protocol `max_inference_bytes`.
    """
    unanswered = _all_of(_status_is(503), {"response_flag_filter": {"flags": ["UAEX"]}})
    return {
        "mappers": [
            *_for_grpc_clients(),
            {
                "filter": unanswered,
                "body_format_override": _error_body(
                    14, "credentials cannot be checked now: the gateway service is away"
                ),
                "headers_to_add": _RETRY_AFTER,
            },
            *_for_rest_inference(max_inference_bytes),
            {"filter": _status_is(413), "body_format_override": _error_body(8, _too_large(max_bytes))},
            *(_of_status(status, code) for status, code in GRPC_CODE_OF_STATUS.items()),
        ],
        "body_format": _error_body(2),
    }


def _for_grpc_clients() -> Iterator[Json]:
    is_grpc = _all_of(
        _header("content-type", {"string_match": {"prefix": "application/grpc"}}),
        _header("x-envoy-original-path", {"present_match": True, "invert_match": True}),
    )
    infers = _header(":path", {"string_match": {"prefix": GRPC_INFERENCE}})
    for flags, message in ((AWAY, TRITON_IS_AWAY), (["UO"], TRITON_IS_FULL)):
        yield {
            "filter": _all_of(is_grpc, infers, {"response_flag_filter": {"flags": flags}}),
            "body_format_override": _text(message),
            "headers_to_add": _RETRY_AFTER,
        }
    yield {"filter": is_grpc, "body_format_override": _text("%LOCAL_REPLY_BODY%")}


def _for_rest_inference(max_bytes: int) -> Iterator[Json]:
    """Clients of the Open Inference Protocol read `error`."""
    infers = _header(":path", {"string_match": {"prefix": REST_INFERENCE}})
    yield {
        "filter": _all_of(infers, _status_is(503), {"response_flag_filter": {"flags": AWAY}}),
        "body_format_override": _inference_error_body(14, TRITON_IS_AWAY),
        "headers_to_add": _RETRY_AFTER,
    }
    yield {
        "filter": _all_of(infers, _status_is(503), {"response_flag_filter": {"flags": ["UO"]}}),
        "status_code": 429,
        "body_format_override": _inference_error_body(8, TRITON_IS_FULL),
        "headers_to_add": _RETRY_AFTER,
    }
    yield {
        "filter": _all_of(infers, _status_is(413)),
        "body_format_override": _inference_error_body(8, _too_large(max_bytes)),
    }
    for status, code in GRPC_CODE_OF_STATUS.items():
        # Whether to come again says the script: a model may have failed for good.
        yield {
            "filter": _all_of(infers, _status_is(status)),
            "body_format_override": _inference_error_body(code),
        }


def _too_large(max_bytes: int) -> str:
    return f"body: it is too large; allowed: at most {max_bytes} bytes"


def _of_status(status: int, code: int) -> Json:
    mapper: Json = {"filter": _status_is(status), "body_format_override": _error_body(code)}
    return mapper | {"headers_to_add": _RETRY_AFTER} if status in REPEATABLE else mapper


_RETRY_AFTER = [{"header": {"key": "retry-after", "value": "1"}, "append_action": "ADD_IF_ABSENT"}]


def _all_of(*filters: Json) -> Json:
    return {"and_filter": {"filters": list(filters)}}


def _header(name: str, condition: Json) -> Json:
    return {"header_filter": {"header": {"name": name, **condition}}}


def _status_is(status: int) -> Json:
    value = {"default_value": status, "runtime_key": "none"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _text(message: str) -> Json:
    return {"text_format_source": {"inline_string": message}, "content_type": "text/plain"}


def _error_body(code: int, message: str = "%LOCAL_REPLY_BODY%") -> Json:
    return {"json_format": {"code": code, "message": message, "details": []}}


def _inference_error_body(code: int, message: str = "%LOCAL_REPLY_BODY%") -> Json:
    return {"json_format": {"code": code, "message": message, "details": [], "error": message}}
