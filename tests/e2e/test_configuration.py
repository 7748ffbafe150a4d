"""GET /conf of a whole platform: what every service runs with, and no secret."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import requests
from dlmesh_platform.client import API, ApiError, Client
from dlmesh_platform.launch import RunningPlatform
from servicekit.settings import DEFAULT_PORTS

pytestmark = [pytest.mark.platform, pytest.mark.slow]


def test_every_service_shows_what_it_runs_with(platform: RunningPlatform, admin: Client) -> None:
    shown = admin.get("/conf")
    for service in DEFAULT_PORTS:
        assert shown[f"dlmesh.{service}.home"] == str(platform.home)
        assert shown[f"dlmesh.{service}.data.roots"] == str(platform.home / "data")
        assert shown[f"dlmesh.{service}.database.url"].startswith("sqlite:///")
    assert platform.url.endswith(":" + shown["dlmesh.gateway.http.port"])
    # Defaults are in effect, too.
    assert shown["dlmesh.training.max.silent.seconds"] == "1800"
    assert (shown["dlmesh.training.zero.stage"], shown["dlmesh.training.async.max.staleness"]) == ("1", "16")
    assert shown["dlmesh.scheduling.warm.pool"] in ("true", "false")
    assert int(shown["dlmesh.scheduling.slots"]) >= 2
    assert shown["dlmesh.inference.triton.max.image.bytes"] == str(64 * 1024 * 1024)
    assert shown["triton.http.url"].startswith("http://127.0.0.1:")
    assert all(isinstance(value, str) for value in shown.values())


def test_it_shows_no_secret(platform: RunningPlatform, admin: Client) -> None:
    text = admin.request("GET", "/conf").text
    token = requests.get(
        f"{platform.url}/platform/rest/conductor/v1/auth/logon",
        auth=("Admin", (platform.home / "admin_password").read_text().strip()),
        timeout=10,
    ).json()["csrftoken"]
    secrets = [(platform.home / name).read_text().strip() for name in ("secret", "admin_password")]
    for secret in [*secrets, token]:
        assert len(secret) > 8
        assert secret not in text


def test_only_administrators_read_it(platform: RunningPlatform, new_user: Callable[[str], Client]) -> None:
    assert requests.get(f"{platform.url}{API}/conf", timeout=10).status_code == 401
    with pytest.raises(ApiError) as refused:
        new_user("reader").get("/conf")
    assert (refused.value.status, "only an administrator" in refused.value.message) == (403, True)
