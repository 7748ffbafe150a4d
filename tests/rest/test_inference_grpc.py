"""The Open Inference Protocol by gRPC through a real Envoy to a real Triton."""

from __future__ import annotations

import random
import signal
import struct
import time
from typing import Any

import grpc
import numpy as np
import pytest
import requests
import tritonclient.grpc as triton_grpc
from gateway_room import ADMIN, Platform, basic_header, grpc_basic
from inference_calls import ALICE, MAX_BYTES, METHOD, VALUES, call_infer, infer, refused, request_of
from inference_room import Triton
from tritonclient.grpc import service_pb2


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


@pytest.mark.parametrize(
    ("size", "code"), [(MAX_BYTES - 400, None), (2 * MAX_BYTES, grpc.StatusCode.RESOURCE_EXHAUSTED)]
)
def test_a_body_that_is_all_there_before_its_caller_is_known(
    platform: Platform, channel: grpc.Channel, size: int, code: grpc.StatusCode | None
) -> None:
    """Envoy holds the first of it and tells the sender to wait; it must also tell it to go on."""
    token = platform.client().get(platform.url("/platform/rest/conductor/v1/auth/logon"))
    metadata = (("authorization", f"Bearer {token.cookies['platform.rest.token']}"),)
    request = request_of("echo", values=[0.5, -1.0, 2.0, 8.0] * (size // 16))
    platform.gateway.send_signal(signal.SIGSTOP)
    try:
        call = call_infer(channel).future(request, metadata=metadata, timeout=60)
        time.sleep(1)
        assert not call.done()
    finally:
        platform.gateway.send_signal(signal.SIGCONT)
    error = call.exception()
    assert (error and error.code()) is code
    if error is None:
        # Lua has let go of it while the admission was asked for, and added the version to the same bytes.
        assert call.result().raw_output_contents == request.raw_input_contents
