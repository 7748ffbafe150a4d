"""The Open Inference Protocol by REST through a real Envoy to a real Triton."""

from __future__ import annotations

import json
import re
import struct
from typing import Any

import grpc
import pytest
import requests
from gateway_room import ADMIN, Platform, assert_error, grpc_basic, wait_until
from inference_calls import ALICE, MAX_BYTES, METHOD, VALUES, body_of, call_infer, infer, refused, request_of
from inference_room import FAILS, OWN_WORDS, Triton


def marks_of(platform: Platform) -> list[str]:
    """What marks a request as admitted, from Envoy's own configuration."""
    text = (platform.home / "run" / "envoy.json").read_text()
    marks = re.findall(r'"x-dlmesh-triton",\s+"string_match": {\s+"exact": "(\w+)"', text)
    assert len(set(marks)) == 2
    return sorted(set(marks))


def test_rest_health_metadata_and_inference(platform: Platform, triton: Triton) -> None:
    client = platform.client()
    assert client.get(platform.url("/v2")).json()["name"] == "triton"
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/echo/ready", "/v2/models/echo/versions/2/ready"):
        assert client.get(platform.url(path)).status_code == 200, path
    assert client.get(platform.url("/v2/models/echo")).json()["versions"] == ["1", "2"]
    assert client.get(platform.url("/v2/models/echo/config")).json()["name"] == "echo"
    stats = client.get(platform.url("/v2/models/echo/stats")).json()
    assert [entry["name"] for entry in stats["model_stats"]] == ["echo", "echo"]
    answer = client.post(platform.url("/v2/models/echo/infer"), json=body_of(VALUES)).json()
    assert (answer["model_name"], answer["model_version"]) == ("echo", "1")
    assert answer["outputs"][0]["data"] == VALUES
    answer = client.post(platform.url("/v2/models/e%63ho/versions/2/infer?csrftoken=x"), json=body_of(VALUES)).json()
    assert (answer["model_name"], answer["model_version"]) == ("echo", "2")


def test_binary_tensors_over_rest(platform: Platform, triton: Triton) -> None:
    head = b'{"inputs":[{"name":"INPUT__0","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}'
    answer = platform.client().post(
        platform.url("/v2/models/echo/infer"),
        data=head + struct.pack("<2f", 1.0, 2.0),
        headers={"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"},
    )
    assert answer.json()["outputs"][0]["data"] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("verb", "path", "status", "code"),
    [
        ("GET", "/v2/models/private", 403, 7),
        ("POST", "/v2/models/private/infer", 403, 7),
        ("POST", "/v2/models/nope/versions/1/infer", 404, 5),
        ("POST", "/v2/models/loading/infer", 503, 14),
        ("GET", "/v2/models/ghost", 503, 14),
        ("POST", "/v2/models/ghost/infer", 503, 14),
        ("GET", "/v2/models/echo/versions/9/ready", 503, 14),
        ("POST", "/v2/models/echo/versions/0/infer", 400, 3),
        ("POST", "/v2/models/echo/versions/-1/infer", 400, 3),
        ("GET", "/v2/models/echo/infer", 404, 5),
        ("POST", "/v2/models/echo", 404, 5),
        ("POST", "/v2/models/echo/generate", 404, 5),
        ("POST", "/v2/models/echo/generate_stream", 404, 5),
        ("POST", "/v2/models/echo/infer/../../private/infer", 403, 7),
        ("POST", "/v2/models/echo%2Finfer%3F/infer", 404, 5),
        ("POST", "/v2/models/a%20b/infer", 404, 5),
        ("GET", "/v2/models/stats", 404, 5),
        ("GET", "/v2/models", 404, 5),
        ("GET", "/v2/nope", 404, 5),
        ("POST", "/v2/repository/index", 403, 7),
        ("POST", "/v2/repository/models/echo/unload", 403, 7),
        ("POST", "/v2/systemsharedmemory/region/x/register", 403, 7),
        ("GET", "/v2/cudasharedmemory/status", 403, 7),
        ("GET", "/v2/trace/setting", 403, 7),
        ("GET", "/v2/models/echo/trace/setting", 403, 7),
        ("POST", "/v2/logging", 403, 7),
    ],
)
def test_rest_refusals(platform: Platform, triton: Triton, verb: str, path: str, status: int, code: int) -> None:
    client = platform.client(ALICE)
    prepared = client.prepare_request(requests.Request(verb, platform.url("/"), json=body_of(VALUES)))
    prepared.url = platform.url(path)
    body = assert_error(answer := client.send(prepared), status, code)
    # As clients of the protocol read it.
    assert body["error"] == body["message"]
    seconds = "3" if "loading" in path else "1"
    assert answer.headers.get("retry-after") == (seconds if status == 503 else None)


def test_what_failed_for_good_is_not_worth_another_try(platform: Platform, channel: grpc.Channel) -> None:
    answer = platform.client().get(platform.url("/v2/models/failed"))
    assert "out of memory" in assert_error(answer, 503, 14)["message"]
    assert "retry-after" not in answer.headers
    assert refused(lambda: infer(channel, request_of("failed")))[0] is grpc.StatusCode.UNAVAILABLE


def test_words_of_the_inference_service_arrive_as_they_are(platform: Platform, channel: grpc.Channel) -> None:
    message = 'inference model "private" belongs to\nanother user'
    answer = platform.client(ALICE).get(platform.url("/v2/models/private"))
    assert answer.json()["message"] == message
    assert refused(lambda: infer(channel, request_of("private"), ALICE)) == (
        grpc.StatusCode.PERMISSION_DENIED,
        message,
    )


def test_every_path_needs_credentials(platform: Platform, channel: grpc.Channel) -> None:
    for path in ("/v2", "/v2/health/live", "/v2/models/echo", "/v2/models/echo/ready", "/v2/repository/index"):
        assert_error(answer := requests.get(platform.url(path), timeout=10), 401, 16)
        assert answer.json()["error"]
    for mark in marks_of(platform):
        forged = {"x-dlmesh-user": "root", "x-dlmesh-admin": "1", "x-dlmesh-triton": mark}
        assert_error(requests.get(platform.url("/v2/models/echo"), headers=forged, timeout=10), 401, 16)
        assert_error(requests.post(platform.url("/v2/repository/index"), headers=forged, timeout=10), 401, 16)
    for method in ("ServerLive", "ModelInfer", "RepositoryIndex", "ModelStreamInfer"):
        call = channel.unary_unary(METHOD + method)
        assert refused(lambda call=call: call(b"", timeout=10))[0] is grpc.StatusCode.UNAUTHENTICATED


def test_a_mark_of_the_client_is_no_admission(platform: Platform, triton: Triton) -> None:
    client = platform.client(ALICE)
    for mark in marks_of(platform):
        headers = {"x-dlmesh-triton": mark, "x-dlmesh-user": "Admin"}
        assert_error(client.post(platform.url("/v2/repository/index"), headers=headers), 403, 7)
        assert_error(client.post(platform.url("/v2/models/private/infer"), headers=headers, json={}), 403, 7)


def test_errors_of_triton_have_the_shape_of_the_platform(platform: Platform, triton: Triton) -> None:
    client, url = platform.client(), platform.url("/v2/models/echo/infer")
    body = body_of(VALUES)
    body["inputs"][0]["shape"] = [1, 7]
    assert "Shape" in assert_error(client.post(url, json=body), 400, 3)["message"]
    assert_error(client.post(url, data='{"a": "b\\"'), 400, 3)
    body = body_of(VALUES)
    body["inputs"][0]["name"] = 'say "x"'
    assert assert_error(client.post(url, json=body), 400, 3)["error"]


DEEP = '{"inputs": [{"name": "INPUT__0", "shape": [1, 1], "datatype": "BYTES", "data": ' + "[" * 100_000 + "]" * 100_000
CLASSES_OF_TEXT = '"outputs": [{"name": "RESULT", "parameters": {"classification": 1}}]'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"inputs": [{"name": "INPUT__0", "shape": [1, 99999999999, 16], "datatype": "FP32", "data": [1]}]}', "shape"),
        ('{"inputs": [{"shape" : [30000000, 16], "name": "INPUT__0", "datatype": "FP32", "data": [1]}]}', "shape"),
        ('{"inputs": [{"name": "INPUT__0", "shape": [1e10], "datatype": "FP32", "data": [1]}]}', "whole numbers"),
        ('{"inputs": [{"name": "INPUT__0", "sh\\u0061pe": [99999999999], "datatype": "FP32", "data": [1]}]}', "escape"),
        (DEEP + "}]}", "nested"),
        ('{"inputs": [], ' + CLASSES_OF_TEXT + "}", "classes"),
        ('{"inputs": [], ' + CLASSES_OF_TEXT.replace("RES", "R\\u0045S") + "}", "classes"),
        ('{"inputs": [{"name": "a', "no end"),
    ],
)
def test_what_triton_would_end_on_is_not_sent(platform: Platform, triton: Triton, body: str, words: str) -> None:
    answer = platform.client().post(platform.url("/v2/models/echo/infer"), data=body)
    assert words in assert_error(answer, 400, 3)["message"]
    # Nor behind a length that hides it.
    headers = {"inference-header-content-length": str(len(body) + 1)}
    answer = platform.client().post(platform.url("/v2/models/echo/infer"), data=body, headers=headers)
    assert "length" in assert_error(answer, 400, 3)["message"]


def test_texts_have_no_classes_over_grpc_either(platform: Platform, channel: grpc.Channel) -> None:
    request = request_of("echo")
    request.outputs.add(name="RESULT").parameters["classification"].int64_param = 1
    code, message = refused(lambda: infer(channel, request))
    assert (code, "no classes" in message) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def test_long_texts_and_signs_in_them_are_no_harm(platform: Platform, triton: Triton) -> None:
    body = body_of([*VALUES, 4.0] * 1000)
    body["id"] = '[{"shape": [99999999999]} \\" ' * 100
    answer = platform.client().post(platform.url("/v2/models/echo/infer"), json=body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["outputs"][0]["data"]) == len(body["inputs"][0]["data"])


def test_what_a_model_says_is_not_taken_for_what_triton_says(platform: Platform, channel: grpc.Channel) -> None:
    answer = platform.client().post(platform.url("/v2/models/echo/infer"), json=body_of([FAILS]))
    assert OWN_WORDS in assert_error(answer, 500, 13)["error"]
    assert "retry-after" not in answer.headers
    code, message = refused(lambda: infer(channel, request_of("echo", values=[FAILS])))
    assert (code, OWN_WORDS in message) == (grpc.StatusCode.INTERNAL, True)


def test_compressed_bodies_are_refused(platform: Platform, channel: grpc.Channel) -> None:
    body = assert_error(
        platform.client().post(
            platform.url("/v2/models/echo/infer"), data=b"\x1f\x8b", headers={"content-encoding": "gzip"}
        ),
        400,
        3,
    )
    assert "compressed" in body["message"]
    call = channel.unary_unary(METHOD + "ModelInfer", request_serializer=lambda sent: sent.SerializeToString())
    code, message = refused(
        lambda: call(
            request_of("echo", values=[1.0] * 1000),
            metadata=grpc_basic(*ADMIN),
            compression=grpc.Compression.Gzip,
            timeout=10,
        )
    )
    assert (code, "compress" in message) == (grpc.StatusCode.UNIMPLEMENTED, True)


def test_bodies_have_a_limit(platform: Platform, channel: grpc.Channel) -> None:
    client, url = platform.client(), platform.url("/v2/models/echo/infer")
    for beyond in (1, 2 * 1024**2):
        message = assert_error(client.post(url, data=bytes(MAX_BYTES + beyond)), 413, 8)["message"]
        assert f"at most {MAX_BYTES} bytes" in message
    answer = client.post(url, data=iter([b"x" * MAX_BYTES, b"x"]), timeout=60)
    assert "content-length" in assert_error(answer, 400, 3)["message"]
    many = request_of("echo")
    many.raw_input_contents[0] = bytes(MAX_BYTES)
    fits = request_of("echo")
    fits.raw_input_contents[0] = bytes(MAX_BYTES - 400)
    fits.inputs[0].shape[1] = MAX_BYTES // 4 - 100
    # Callers that are not known take another way: a new session is one.
    for _ in range(2):
        token = platform.client().get(platform.url("/platform/rest/conductor/v1/auth/logon"))
        metadata = (("authorization", f"Bearer {token.cookies['platform.rest.token']}"),)
        for _ in range(2):
            answer = call_infer(channel)(fits, metadata=metadata, timeout=120)
            assert len(answer.raw_output_contents[0]) == MAX_BYTES - 400
        for _ in range(2):
            code, message = refused(lambda metadata=metadata: call_infer(channel)(many, metadata=metadata, timeout=120))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert f"at most {MAX_BYTES} bytes" in message


def test_the_access_log_says_who_asked_for_what(platform: Platform, triton: Triton) -> None:
    token = platform.client().get(platform.url("/platform/rest/conductor/v1/auth/logon")).cookies["platform.rest.token"]
    client = platform.client(None)
    client.headers["x-auth-token"] = token
    paths = [f"/v2/models/echo/infer?turn={turn}" for turn in ("first", "again")]
    ids = [client.post(platform.url(path), json=body_of(VALUES)).headers["x-request-id"] for path in paths]

    def lines() -> list[dict[str, Any]]:
        found = (line for line in (platform.home / "out").read_text().splitlines() if any(each in line for each in ids))
        return [json.loads(line) for line in found]

    wait_until(lambda: len(lines()) == 2, 60)
    # The first by a caller who is not known yet.
    assert {line["upstream"] for line in lines()} == {"inference_inside", "triton_http"}
    assert {(line["user"], line["path"]) for line in lines()} == {("Admin", "/v2/models/echo/infer")}
