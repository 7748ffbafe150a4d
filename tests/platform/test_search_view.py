"""What `dlmesh search show` asks for while it is watched, and what it makes of the answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from dlmesh_platform import search_command
from dlmesh_platform.client import API, Client
from dlmesh_platform.search_command import SearchView
from rich.console import Console


class PlayedSearch:
    """The answers of a search with trials of these values; those without one run. `asked` is which paths were asked
    for."""

    def __init__(self, *values: float | None, state: str = "RUNNING") -> None:
        self.values, self.state = list(values), state
        self.asked: list[str] = []

    def answer(self, target: str) -> tuple[int, Any]:
        parts = urlsplit(target)
        path = parts.path.removeprefix(f"{API}/hypersearch/first")
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.asked.append(path)
        trials = [self._trial(index) for index in range(len(self.values))]
        finished = sorted((one for one in trials if "metricVal" in one), key=lambda one: one["metricVal"])
        if path == "/importance":
            return (200, [{"name": "rate", "importance": 1.0}]) if len(finished) >= 8 else (400, {"message": "few"})
        start, length = int(query.get("start", 0)), int(query["length"])
        if path == "/experiments":
            return 200, (finished if "sort" in query else trials)[start : start + length]
        return 200, {
            "state": self.state,
            "progress": f"{len(finished)}/-",
            "duration": "00:00:01",
            "failed": 0,
            "algorithm": "TPE",
            "objective": "Minimize",
            "objectiveMetric": "loss",
            "statusMessage": "",
            "experimentCount": len(trials),
            "experiments": trials[-length:],
            "best": finished[0] if finished else None,
        }

    def _trial(self, index: int) -> dict[str, Any]:
        value = self.values[index]
        found = {"id": index + 1, "hyperParams": [{"name": "rate", "fixedVal": "0.1"}]}
        return found | ({"state": "RUNNING"} if value is None else {"state": "FINISHED", "metricVal": value})


@pytest.fixture
def played() -> Iterator[tuple[PlayedSearch, Client]]:
    search = PlayedSearch()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = search.answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        client = Client(f"http://127.0.0.1:{listening.server_port}", "ann", "secret")
        yield search, client
        client.close()
        listening.shutdown()
        thread.join()


def text_of(view: SearchView) -> str:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(view.read())
    return captured.get()


def curve(text: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith("best so far")).split()[3:]


def test_importance_is_asked_for_rarely(played: tuple[PlayedSearch, Client], monkeypatch: pytest.MonkeyPatch) -> None:
    search, client = played
    search.values = [float(index) for index in range(9)]
    view = SearchView(client, "first", 10)
    for _ in range(5):
        assert "100%" in text_of(view)
    assert search.asked.count("/importance") == 1
    monkeypatch.setattr(search_command, "IMPORTANCE_SECONDS", 0.0)
    text_of(view)
    assert search.asked.count("/importance") == 2
    monkeypatch.setattr(search_command, "IMPORTANCE_SECONDS", 1e9)
    # What it says in the end is about all of it.
    search.state = "FINISHED"
    text_of(view)
    assert search.asked.count("/importance") == 3


def test_too_few_trials_for_importance(played: tuple[PlayedSearch, Client]) -> None:
    search, client = played
    search.values = [1.0, 2.0]
    text = text_of(SearchView(client, "first", 10))
    assert "what it explains" not in text
    assert curve(text)[-1] == "1"


def test_the_curve_grows_with_what_has_ended(played: tuple[PlayedSearch, Client]) -> None:
    search, client = played
    search.values = [4.0, 3.0, None, 1.0]
    view = SearchView(client, "first", 10)
    # The third runs: what came after it is the best all the same.
    assert curve(text_of(view)) == ["█▁", "1"]
    search.values = [4.0, 3.0, 2.0, 1.0, 1.5, None]
    assert curve(text_of(view)) == ["█▆▃▁▁", "1"]


def test_trials_are_read_once(played: tuple[PlayedSearch, Client]) -> None:
    search, client = played
    search.values = [float(-index) for index in range(2500)]
    view = SearchView(client, "first", 10)
    assert curve(text_of(view))[-1] == "-2499"
    # Three pages, and the table.
    assert search.asked.count("/experiments") == 4
    text_of(view)
    assert search.asked.count("/experiments") == 6


def test_the_best_of_a_large_search_may_be_an_old_one(played: tuple[PlayedSearch, Client]) -> None:
    search, client = played
    search.values = [0.25, *(1.0 for _ in range(search_command.MAX_CURVE_TRIALS))]
    view = SearchView(client, "first", 1)
    assert curve(text_of(view)) == ["0.25"]
    assert search.asked.count("/experiments") == 1
    assert view.line.endswith("best 0.25 in trial 1")
