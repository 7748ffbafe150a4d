"""A small client of the public REST API: Basic authentication, JSON, the server's own words in its errors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

API = "/platform/rest/deeplearning/v1"
USERS = "/platform/rest/dlmesh/v1/users"
GROUPS = "/platform/rest/dlmesh/v1/instancegroups"
ENDED = frozenset({"FINISHED", "FAILED", "STOPPED"})
Json = Any


class ApiError(RuntimeError):
    """The API refused: `status` is the HTTP status, the text is the server's message."""

    def __init__(self, method: str, path: str, status: int, message: str) -> None:
        super().__init__(f"{method} {path}: {status} {message}")
        self.status = status
        self.message = message


class Client:
    """Speaks to one platform as one user. Paths are below the API's prefix unless they name another one.

    A GET that finds nobody, or a service that is restarting, is repeated for `patience_seconds`.
    """

    def __init__(
        self, url: str, user: str, password: str, *, timeout_seconds: float = 60.0, patience_seconds: float = 15.0
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.auth = (user, password)
        self._patience_seconds = patience_seconds

    @classmethod
    def of_home(cls, home: Path, url: str, user: str = "Admin", **options: float) -> Client:
        """As the administrator whose password was generated at the first start of `home`."""
        return cls(url, user, (home / "admin_password").read_text().strip(), **options)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """One call; ApiError for a status from 400."""
        url = self.url + (path if path.startswith(("/platform", "/healthz", "/dlim")) else API + path)
        deadline = time.monotonic() + (self._patience_seconds if method == "GET" else 0.0)
        while True:
            try:
                response = self._session.request(method, url, timeout=self._timeout_seconds, **options)
            except requests.ConnectionError:
                if time.monotonic() > deadline:
                    raise
            else:
                if response.status_code != 503 or time.monotonic() > deadline:
                    break
            time.sleep(0.2)
        if response.status_code >= 400:
            raise ApiError(method, path, response.status_code, _message(response))
        return response

    def get(self, path: str, **query: str) -> Json:
        """The JSON of a GET."""
        return self.request("GET", path, params=query).json()

    def post(self, path: str, body: Json = None) -> Json:
        """POST JSON; None when the answer is empty."""
        return _body(self.request("POST", path, json=body))

    def put(self, path: str, body: Json = None) -> Json:
        """PUT JSON; None when the answer is empty."""
        return _body(self.request("PUT", path, json=body))

    def delete(self, path: str) -> None:
        """DELETE."""
        self.request("DELETE", path)

    def upload(self, path: str, fields: Mapping[str, str], files: Mapping[str, Path]) -> Json:
        """POST multipart/form-data; each file's part is named by its key."""
        parts: list[tuple[str, Any]] = [(name, (None, value)) for name, value in fields.items()]
        parts += [(name, (file.name, file.read_bytes())) for name, file in files.items()]
        return _body(self.request("POST", path, files=parts))

    def wait(
        self,
        fetch: Callable[[], Json],
        *,
        seconds: float,
        on_change: Callable[[Json], None] = lambda _: None,
        ended: frozenset[str] = ENDED,
        interval_seconds: float = 0.3,
    ) -> Json:
        """Poll `fetch` until its `status` is an end, telling `on_change` each answer; TimeoutError after `seconds`.

        RuntimeError with the status message when the end is not FINISHED.
        """
        deadline = time.monotonic() + seconds
        while True:
            detail = fetch()
            on_change(detail)
            status = str(detail.get("status", "")).upper()
            if status in ended:
                if status != "FINISHED":
                    raise RuntimeError(f"ended {status}: {detail.get('statusMessage') or 'no status message'}")
                return detail
            if time.monotonic() > deadline:
                raise TimeoutError(f"still {status} after {seconds:.0f} s: {json.dumps(detail)[:500]}")
            time.sleep(interval_seconds)

    def until(self, condition: Callable[[], bool], *, seconds: float, interval_seconds: float = 0.1) -> None:
        """Poll until `condition` holds; TimeoutError when it does not in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not so after {seconds:.0f} s")
            time.sleep(interval_seconds)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def segment(name: str) -> str:
    """A name as a path segment."""
    return quote(name, safe="")


def named(items: Sequence[Json], key: str, value: str) -> Json:
    """The element whose `key` is `value`; LookupError when there is none."""
    for item in items:
        if item.get(key) == value:
            return item
    raise LookupError(f"none of {len(items)} has {key} {value}")


def _body(response: requests.Response) -> Json:
    return response.json() if response.content.strip() else None


def _message(response: requests.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500] or response.reason
