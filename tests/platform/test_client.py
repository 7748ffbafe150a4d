"""The REST client: the server's words in its errors, patience with what is restarting."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from dlmesh_platform.client import ApiError, Client


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = replies.pop(0) if len(replies) > 1 else replies[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    replies: list[tuple[int, bytes]] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.replies = replies  # type: ignore[attr-defined]
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


def client_of(server: ThreadingHTTPServer, *replies: tuple[int, object]) -> Client:
    server.replies += [(status, json.dumps(body).encode()) for status, body in replies]  # type: ignore[attr-defined]
    return Client(f"http://127.0.0.1:{server.server_port}", "ann", "secret", patience_seconds=5.0)


def test_a_get_waits_for_a_service_that_restarts(server: ThreadingHTTPServer) -> None:
    client = client_of(server, (503, {"message": "restarting"}), (200, {"name": "digits"}))
    assert client.get("/datasets/digits") == {"name": "digits"}
    client.close()


def test_a_post_is_not_repeated(server: ThreadingHTTPServer) -> None:
    client = client_of(server, (503, {"message": "restarting"}), (201, {}))
    with pytest.raises(ApiError, match="503 restarting"):
        client.post("/datasets", {})
    client.close()


def test_the_servers_message_is_shown(server: ThreadingHTTPServer) -> None:
    client = client_of(server, (409, {"code": 6, "message": "name: 'digits' is taken"}))
    with pytest.raises(ApiError, match="is taken") as refusal:
        client.post("/datasets", {"name": "digits"})
    assert refusal.value.status == 409
    client.close()


def test_wait_reports_until_the_end(server: ThreadingHTTPServer) -> None:
    client = client_of(server)
    details = iter([{"status": "SUBMITTED"}, {"status": "RUNNING", "progress": 50}, {"status": "FINISHED"}])
    seen: list[str] = []
    client.wait(
        lambda: next(details), seconds=5, on_change=lambda detail: seen.append(detail["status"]), interval_seconds=0
    )
    assert seen == ["SUBMITTED", "RUNNING", "FINISHED"]
    with pytest.raises(RuntimeError, match="FAILED: out of memory"):
        client.wait(lambda: {"status": "FAILED", "statusMessage": "out of memory"}, seconds=5)
    with pytest.raises(TimeoutError, match="still RUNNING"):
        client.wait(lambda: {"status": "RUNNING"}, seconds=0.05, interval_seconds=0.01)
    client.close()
