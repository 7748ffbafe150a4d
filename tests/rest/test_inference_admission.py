"""Who may infer with what, which version answers, and how many at once, through a real Envoy to a real Triton."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import requests
from gateway_room import Platform, assert_error, wait_until
from inference_calls import ALICE, MAX_REQUESTS, VALUES, body_of, infer, refused, request_of
from inference_room import LIFETIME_SECONDS, Triton


@pytest.fixture
def shares(platform: Platform, triton: Triton) -> Iterator[Callable[..., None]]:
    """`shares(v1=90, v2=10)` returns once no answer of before may be remembered."""
    admissions = platform.backend.admissions

    def set_shares(**parts: int) -> None:
        admissions.shares = {int(version.removeprefix("v")): part for version, part in parts.items()}
        time.sleep(LIFETIME_SECONDS * 1.05)

    yield set_shares
    set_shares(v1=100)


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
        assert "too many requests wait" in assert_error(answer, 429, 8)["error"]
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
