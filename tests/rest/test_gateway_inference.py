"""The Open Inference Protocol through a real Envoy to a real Triton."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import requests
import tritonclient.grpc as triton_grpc
from dlmesh.inference.v1 import kernels_pb2, kernels_pb2_grpc
from gateway_room import ADMIN, Platform, assert_error, basic_header, grpc_basic, running_platform, wait_until
from inference_room import FAILS, LIFETIME_SECONDS, OWN_WORDS, InferencePeers, Triton, running_triton
from tritonclient.grpc import service_pb2

USERS = "/platform/rest/dlmesh/v1/users"
ALICE = ("alice", "password of alice")
MAX_BYTES = 20 * 1024 * 1024
MAX_REQUESTS = 12
METHOD = "/inference.GRPCInferenceService/"
VALUES = [1.5, -2.0, 3.25]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    limits = {
        "DLMESH_MAX_INFERENCE_BYTES": str(MAX_BYTES),
        "DLMESH_MAX_INFERENCE_REQUESTS": str(MAX_REQUESTS),
        "DLMESH_ENVOY_WORKERS": "1",
    }
    with running_platform(tmp_path_factory.mktemp("inference"), InferencePeers, environment=limits) as running:
        alice = {"name": ALICE[0], "password": ALICE[1], "role": "user"}
        assert running.client().post(running.url(USERS), json=alice).status_code == 201
        yield running


@pytest.fixture(scope="module")
def triton(platform: Platform) -> Iterator[Triton]:
    with running_triton(platform.home) as server:
        client = platform.client()
        wait_until(lambda: client.get(platform.url("/v2/health/ready")).status_code == 200, 30)
        yield server


@pytest.fixture
def shares(platform: Platform, triton: Triton) -> Iterator[Callable[..., None]]:
    """`shares(v1=90, v2=10)` returns once no answer of before may be remembered."""
    admissions = platform.backend.admissions

    def set_shares(**parts: int) -> None:
        admissions.shares = {int(version.removeprefix("v")): part for version, part in parts.items()}
        time.sleep(LIFETIME_SECONDS * 1.05)

    yield set_shares
    set_shares(v1=100)


@pytest.fixture
def channel(platform: Platform, triton: Triton) -> Iterator[grpc.Channel]:
    limits = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
    with grpc.insecure_channel(f"127.0.0.1:{platform.port}", limits) as opened:
        yield opened


def body_of(values: list[float]) -> dict[str, Any]:
    return {"inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": [1, len(values)], "data": values}]}


def request_of(name: str, version: str = "", values: list[float] | None = None) -> Any:
    values = values or VALUES
    request = service_pb2.ModelInferRequest(model_name=name, model_version=version)
    request.inputs.add(name="INPUT__0", datatype="FP32", shape=[1, len(values)])
    request.raw_input_contents.append(np.array(values, np.float32).tobytes())
    return request


def call_infer(channel: grpc.Channel) -> Any:
    return channel.unary_unary(
        METHOD + "ModelInfer",
        request_serializer=lambda sent: sent if isinstance(sent, bytes) else sent.SerializeToString(),
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )


def infer(channel: grpc.Channel, request: Any, user: tuple[str, str] = ADMIN, seconds: float = 60) -> Any:
    return call_infer(channel)(request, metadata=grpc_basic(*user), timeout=seconds)


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refusal:
        call()
    return refusal.value.code(), str(refusal.value.details())


def marks_of(platform: Platform) -> list[str]:
    """What marks a request as admitted, from Envoy's own configuration."""
    text = (platform.home / "run" / "envoy.json").read_text()
    marks = re.findall(r'"x-dlmesh-triton",\s+"string_match": {\s+"exact": "(\w+)"', text)
    assert len(set(marks)) == 2
    return sorted(set(marks))


# -- REST


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
    assert_error(client.post(url, data=b"x" * (MAX_BYTES + 1)), 413, 8)
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
            code, _ = refused(lambda metadata=metadata: call_infer(channel)(many, metadata=metadata, timeout=120))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


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


# -- gRPC


def test_the_published_grpc_client(platform: Platform, triton: Triton) -> None:
    headers = basic_header(*ADMIN)
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{platform.port}")
    try:
        assert client.is_server_live(headers)
        assert client.is_server_ready(headers)
        assert client.get_server_metadata(headers).name == "triton"
        assert client.is_model_ready("echo", headers=headers)
        assert client.is_model_ready("echo", "2", headers=headers)
        assert list(client.get_model_metadata("echo", headers=headers).versions) == ["1", "2"]
        assert client.get_model_config("echo", headers=headers).config.name == "echo"
        assert len(client.get_inference_statistics("echo", headers=headers).model_stats) == 2
        tensor = triton_grpc.InferInput("INPUT__0", [1, 3], "FP32")
        tensor.set_data_from_numpy(np.array([VALUES], np.float32))
        for version, expected in (("", "1"), ("2", "2"), ("1", "1")):
            result = client.infer("echo", [tensor], model_version=version, headers=headers, request_id="r")
            assert result.as_numpy("OUTPUT__0").tolist() == [VALUES]
            assert (result.get_response().model_version, result.get_response().id) == (expected, "r")
    finally:
        client.close()


def test_grpc_refusals(platform: Platform, channel: grpc.Channel) -> None:
    status = grpc.StatusCode
    for name, expected in (
        ("private", status.PERMISSION_DENIED),
        ("nope", status.NOT_FOUND),
        ("loading", status.UNAVAILABLE),
        ("ghost", status.UNAVAILABLE),
        ("a/b", status.NOT_FOUND),
        ("", status.INVALID_ARGUMENT),
    ):
        assert refused(lambda name=name: infer(channel, request_of(name), ALICE))[0] is expected, name
    for version in ("0", "-1", "01", "x", "9" * 10):
        assert refused(lambda version=version: infer(channel, request_of("echo", version)))[0] is (
            status.INVALID_ARGUMENT
        ), version
    assert refused(lambda: infer(channel, request_of("echo", "9")))[0] is status.UNAVAILABLE
    for method in ("RepositoryIndex", "RepositoryModelUnload", "SystemSharedMemoryRegister", "TraceSetting", "Nope"):
        call = channel.unary_unary(METHOD + method)
        code, _ = refused(lambda call=call: call(b"", metadata=grpc_basic(*ADMIN), timeout=10))
        assert code is status.UNIMPLEMENTED, method
    stream = channel.stream_stream(METHOD + "ModelStreamInfer")
    code, message = refused(lambda: list(stream(iter([b""]), metadata=grpc_basic(*ADMIN), timeout=10)))
    assert code is status.UNIMPLEMENTED
    assert "ModelInfer" in message
    statistics = channel.unary_unary(METHOD + "ModelStatistics")
    code, _ = refused(lambda: statistics(b"", metadata=grpc_basic(*ADMIN), timeout=10))
    assert code is status.INVALID_ARGUMENT, "all models at once are nobody's"


def varint(number: int, extra: int = 0) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    for _ in range(extra):
        parts[-1] |= 128
        parts.append(0)
    return bytes(parts)


def field(tag: bytes, value: bytes, extra: int = 0) -> bytes:
    return tag + varint(len(value), extra) + value


NAME, VERSION = b"\x0a", b"\x12"
TAIL = request_of("").SerializeToString()
PRIVATE, OWN = field(NAME, b"private"), field(NAME, b"echo")


@pytest.mark.parametrize(
    ("message", "answers"),
    [
        pytest.param(PRIVATE + OWN + TAIL, True, id="the last name counts"),
        pytest.param(OWN + TAIL + PRIVATE, False, id="the last name counts wherever it is"),
        pytest.param(field(NAME, b"echo", 3) + TAIL, True, id="a long way to write a length"),
        pytest.param(field(NAME, b"echo", 5) + TAIL, False, id="too long a way"),
        pytest.param(OWN + TAIL + b"\x8a\x00" + varint(7) + b"private", False, id="a long way to write a tag"),
        pytest.param(OWN + TAIL + b"\x8a\x80\x80\x80\x10\x07private", False, id="a tag beyond 32 bits"),
        pytest.param(OWN + TAIL + b"\x0b" + PRIVATE + b"\x0c", False, id="a group"),
        pytest.param(OWN + TAIL + b"\x08\x01", False, id="a number for a name"),
        pytest.param(OWN + TAIL + b"\x0a", False, id="cut after a tag"),
        pytest.param(OWN + TAIL + b"\x0a\xff", False, id="cut in a length"),
        pytest.param(OWN + TAIL + b"\x0a\x05priv", False, id="cut in a text"),
        pytest.param(OWN + TAIL + b"\x0a\xff\xff\xff\xff\x0f", False, id="a length of 4 GiB"),
        pytest.param(OWN + TAIL + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", False, id="a negative length"),
        pytest.param(OWN + TAIL + b"\x02\x00", False, id="field zero"),
        pytest.param(OWN + TAIL + field(b"\x7a", b"x"), True, id="a field that nobody knows"),
        pytest.param(OWN + TAIL + field(b"\x1a", b"id") * 5000, False, id="thousands of fields"),
        pytest.param(OWN + TAIL + field(NAME, b"e" * 200) + OWN, False, id="a name longer than names are"),
        pytest.param(OWN + field(VERSION, b"9") + TAIL + field(VERSION, b""), True, id="the last version counts"),
        pytest.param(b"", False, id="nothing"),
    ],
)
def test_no_message_infers_with_another_model_than_was_admitted(
    platform: Platform, channel: grpc.Channel, message: bytes, answers: bool
) -> None:
    # Alice may use echo, not private: what reaches Triton has been read as Triton reads it.
    if answers:
        response = infer(channel, message, ALICE)
        assert (response.model_name, response.model_version) == ("echo", "1")
    else:
        assert refused(lambda: infer(channel, message, ALICE))[0] in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.PERMISSION_DENIED,
        )


def test_what_the_gateway_reads_is_what_protobuf_reads(platform: Platform, channel: grpc.Channel) -> None:
    """Messages bent at random either mean the admitted model for protobuf, too, or are refused."""
    draw = random.Random(7)
    answered = 0
    for _ in range(300):
        parts = [OWN, PRIVATE, field(VERSION, b""), TAIL, field(NAME, b"private", draw.randrange(6))]
        draw.shuffle(parts)
        message = bytearray(b"".join(parts[: draw.randrange(2, 6)]))
        for _ in range(draw.randrange(3)):
            message[draw.randrange(len(message))] = draw.randrange(256)
        try:
            infer(channel, bytes(message), ALICE)
        except grpc.RpcError:
            continue
        answered += 1
        assert service_pb2.ModelInferRequest.FromString(bytes(message)).model_name == "echo"
    assert answered > 5


@pytest.mark.parametrize("frames", [2, 0, "short", "long"])
def test_a_call_is_one_whole_message(platform: Platform, triton: Triton, frames: Any) -> None:
    message = request_of("echo").SerializeToString()
    frame = b"\0" + struct.pack(">I", len(message)) + message
    body = {2: frame * 2, 0: b"", "short": frame[:-1], "long": frame + b"x"}[frames]
    answer = requests.post(
        platform.url(METHOD + "ModelInfer"),
        data=body,
        headers={"content-type": "application/grpc", "te": "trailers", **basic_header(*ADMIN)},
        timeout=20,
    )
    assert answer.headers["grpc-status"] == "3"


# -- admission and versions


def test_admissions_are_remembered_for_as_long_as_they_say(platform: Platform, channel: grpc.Channel) -> None:
    asked = platform.backend.admissions.asked
    before = len(asked)
    for _ in range(40):
        infer(channel, request_of("echo"), ALICE)
    mine = [entry for entry in asked[before:] if entry[:2] == ("alice", "echo")]
    assert len(mine) < 10
    infer(channel, request_of("echo", "2"), ALICE)
    platform.client(ALICE).get(platform.url("/v2/models/echo/stats"))
    assert ("alice", "echo", "2", False) in asked
    assert ("alice", "echo", "", True) in asked


def test_a_canary_gets_its_share(platform: Platform, channel: grpc.Channel, shares: Callable[..., None]) -> None:
    shares(v1=90, v2=10)
    client, url = platform.client(), platform.url("/v2/models/echo/infer")
    seen = Counter(infer(channel, request_of("echo")).model_version for _ in range(300))
    seen += Counter(client.post(url, json=body_of(VALUES)).json()["model_version"] for _ in range(300))
    # Of 600 draws with a chance of 0.1, fewer than 24 or more than 108 come once in ten million.
    assert 24 <= seen["2"] <= 108
    assert seen["1"] + seen["2"] == 600
    # The whole message arrives, also where the version was added.
    large = [float(index) for index in range(100_000)]
    for _ in range(20):
        answer = infer(channel, request_of("echo", values=large))
        assert answer.raw_output_contents[0] == np.array(large, np.float32).tobytes()
    shares(v1=100)
    assert {infer(channel, request_of("echo")).model_version for _ in range(50)} == {"1"}
    assert infer(channel, request_of("echo", "2")).model_version == "2", "a version that is named needs no share"


def test_a_model_without_a_version_that_answers(
    platform: Platform, channel: grpc.Channel, shares: Callable[..., None]
) -> None:
    shares()
    assert refused(lambda: infer(channel, request_of("echo")))[0] is grpc.StatusCode.UNAVAILABLE
    shares(v1=100)


def test_a_cold_model_is_waited_for_and_nobody_else_waits(platform: Platform, channel: grpc.Channel) -> None:
    admissions = platform.backend.admissions
    with ThreadPoolExecutor(8) as pool:
        cold = [pool.submit(infer, channel, request_of("cold"), ALICE) for _ in range(8)]
        wait_until(lambda: sum(entry[1] == "cold" for entry in admissions.asked) == 8, 60)
        for _ in range(20):
            assert infer(channel, request_of("echo"), ALICE).model_version == "1"
        assert not any(waiting.done() for waiting in cold)
        platform.backend.call_soon(admissions.released.set)
        # Triton has no model of that name: the admission was waited for, that is what this is about.
        codes = [refused(waiting.result)[0] for waiting in cold]
    assert codes == [grpc.StatusCode.UNAVAILABLE] * 8


def test_a_model_whose_queue_is_full_is_worth_another_try(
    platform: Platform, triton: Triton, channel: grpc.Channel
) -> None:
    url, clients = platform.url("/v2/models/narrow/infer"), [platform.client() for _ in range(MAX_REQUESTS - 2)]
    with ThreadPoolExecutor(len(clients)) as pool, triton.held("narrow"):
        calls = [pool.submit(client.post, url, json=body_of(VALUES)) for client in clients]
        wait_until(lambda: any(call.done() for call in calls), 60)
        with pytest.raises(grpc.RpcError) as refusal:
            infer(channel, request_of("narrow"))
        # Others are not kept waiting.
        assert infer(channel, request_of("echo")).model_version == "1"
        full = [call for call in calls if call.done()]
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert ("retry-after", "1") in refusal.value.trailing_metadata()
    for call in full:
        answer = call.result()
        assert "maximum queue size" in assert_error(answer, 429, 8)["error"]
        assert answer.headers["retry-after"] == "1"
    assert {call.result().status_code for call in calls} == {200, 429}


def test_a_triton_that_hangs_is_asked_by_no_more_than_the_limit(
    platform: Platform, triton: Triton, channel: grpc.Channel
) -> None:
    url = platform.url("/v2/models/echo/infer")

    def post(client: requests.Session) -> requests.Response:
        return client.post(url, json=body_of(VALUES))

    # As many are sent, and as many wait for a connection.
    clients = [platform.client() for _ in range(2 * MAX_REQUESTS + 8)]
    with ThreadPoolExecutor(len(clients) + MAX_REQUESTS + 4) as pool, triton.halted():
        rest = [pool.submit(post, client) for client in clients]
        wait_until(lambda: sum(call.done() for call in rest) >= 8, 60)
        full = [call.result() for call in rest if call.done()]
        calls = [pool.submit(infer, channel, request_of("echo")) for _ in range(MAX_REQUESTS + 4)]
        wait_until(lambda: sum(call.done() for call in calls) >= 4, 60)
        refusals = [refused(call.result) for call in calls if call.done()]
    for answer in full:
        assert "too many" in assert_error(answer, 429, 8)["error"]
        assert answer.headers["retry-after"] == "1"
    assert {code for code, _ in refusals} == {grpc.StatusCode.UNAVAILABLE}
    assert all("too many" in message for _, message in refusals), refusals
    waited = [call.result().status_code for call in rest]
    assert Counter(waited)[200] == len(rest) - len(full)
    assert sum(call.exception() is None for call in calls) == len(calls) - len(refusals)


# -- kernels


def test_kernel_streams_pass_both_ways(platform: Platform, channel: grpc.Channel) -> None:
    stub = kernels_pb2_grpc.KernelStreamServiceStub(channel)
    turns = [threading.Event() for _ in range(3)]

    def tasks() -> Iterator[kernels_pb2.StreamKernelTasksRequest]:
        for number, turn in enumerate(turns):
            assert turn.wait(60)
            yield kernels_pb2.StreamKernelTasksRequest(name="m", id=str(number))

    answers = stub.StreamKernelTasks(tasks(), metadata=grpc_basic(*ALICE), timeout=60)
    for number, turn in enumerate(turns):
        turn.set()
        answer = next(answers)
        assert (answer.id, answer.output) == (str(number), "alice")
    assert list(answers) == []
    code, _ = refused(lambda: list(stub.StreamKernelTasks(iter([]), timeout=10)))
    assert code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("content_type", ["application/json", "image/jpeg", "text/plain; charset=x", "a/b", None])
def test_kernels_are_invoked_with_any_body(platform: Platform, content_type: str | None) -> None:
    client, url = platform.client(), platform.url("/dlim/v1/inference/m")
    headers = {"content-type": content_type} if content_type else {}
    answer = client.post(url, data=b"\x00{" * 100, headers=headers)
    assert answer.json() == ["m", content_type or "", 200, "Admin"]


def test_bodies_for_kernels_have_a_limit(platform: Platform) -> None:
    client, url = platform.client(), platform.url("/dlim/v1/inference/m")
    fits = b"x" * (16 * 1024 * 1024)
    assert client.post(url, data=fits).json()[2] == len(fits)
    assert_error(client.post(url, data=fits + b"x"), 413, 8)
    token = platform.client().get(platform.url("/platform/rest/conductor/v1/auth/logon")).cookies["platform.rest.token"]
    for headers in ({"authorization": f"Bearer {token}"}, {"x-auth-token": token}):
        assert platform.client(None).post(url, data=b"x", headers=headers).json()[2] == 1
    assert_error(platform.client(None).post(url, data=b"x"), 401, 16)


# -- Triton away (last: these restart what the others use)


def test_triton_killed_moved_and_switched_off(platform: Platform, triton: Triton, channel: grpc.Channel) -> None:
    client, url = platform.client(), platform.url("/v2/models/echo/infer")
    assert client.post(url, json=body_of(VALUES)).status_code == 200
    triton.kill()
    with ThreadPoolExecutor(2) as pool:
        rest = pool.submit(client.post, url, json=body_of(VALUES))
        call = pool.submit(infer, channel, request_of("echo"))
        wait_until(lambda: platform.counter("cluster.triton_grpc.upstream_rq_retry") >= 1, 30)
        # On other ports: the gateway follows.
        triton.start()
        assert rest.result(60).status_code in (200, 503)
        error = call.exception(60)
        assert error is None or error.code() is grpc.StatusCode.UNAVAILABLE
    wait_until(lambda: client.post(url, json=body_of(VALUES)).status_code == 200, 60)
    assert infer(channel, request_of("echo")).model_version == "1"

    (platform.home / "inference" / "triton.json").unlink()
    wait_until(lambda: client.get(platform.url("/v2/health/live")).status_code == 503, 60)
    answer = client.post(url, json=body_of(VALUES))
    assert "switched off" in assert_error(answer, 503, 14)["error"]
    assert answer.headers["retry-after"]
    # The other file may be read a moment later.
    live = channel.unary_unary(METHOD + "ServerLive")
    wait_until(lambda: live.future(b"", metadata=grpc_basic(*ADMIN)).exception(60) is not None, 60)
    code, message = refused(lambda: infer(channel, request_of("echo")))
    assert (code, "switched off" in message) == (grpc.StatusCode.UNAVAILABLE, True)


def test_what_triton_dies_over_is_not_sent_again(platform: Platform) -> None:
    """One that hangs up on whatever arrives."""
    arrived: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        arrived.append(connection.recv(65536))

        serving = threading.Thread(target=serve)
        serving.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (platform.home / "inference" / "triton.json").write_text(json.dumps({"http": f"http://{address}", "grpc": ""}))
        client = platform.client()
        wait_until(lambda: client.get(platform.url("/v2/health/live")).status_code == 503 and bool(arrived), 60)
        arrived.clear()
        answer = client.post(platform.url("/v2/models/echo/infer"), json=body_of(VALUES))
        server.shutdown(socket.SHUT_RDWR)
        serving.join(60)
    assert "try again" in assert_error(answer, 503, 14)["error"]
    assert answer.headers["retry-after"]
    assert len(arrived) == 1
