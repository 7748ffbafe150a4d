"""What GET /conf shows of settings: all that is in effect, and nothing secret in any form."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path

import grpc
import pytest
from dlmesh.settings.v1 import settings_pb2, settings_pb2_grpc
from servicekit.server import Application
from servicekit.settings import DEFAULT_PORTS, ServiceSettings
from servicekit.shown_settings import SECRET, shown_settings, without_credentials
from testkit.services import ADMIN, acting_as, running, settings_for

SECRET_LIKE = re.compile(r"secret|password|passwd|token|credentials?$|(^|_)key$")


@dataclass(frozen=True)
class Inner:
    home: Path


@dataclass(frozen=True)
class Outer:
    inner: Inner | None
    wait_seconds: float = 1800.0
    tiny: float = 1e-07
    enabled: bool = False
    roots: tuple[Path, ...] = (Path("/a"), Path("/b"))
    absent: str | None = None
    url: str = "http://user:pass@host:8000/x?key=1"
    by_name: Mapping[str, int] = field(default_factory=lambda: {"a": 1})
    password: str = field(default="hidden", metadata=SECRET)


def test_every_field_but_secrets_is_shown_as_text() -> None:
    assert shown_settings({"triton": Outer(Inner(Path("/h")))}) == {
        "triton.inner.home": "/h",
        "triton.wait.seconds": "1800",
        "triton.tiny": "1e-07",
        "triton.enabled": "false",
        "triton.roots": "/a:/b",
        "triton.absent": "",
        "triton.url": "http://host:8000/x",
        "triton.by.name.a": "1",
    }
    assert shown_settings({"": Outer(None)})["inner"] == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://user:pass/word@host:5432/base?sslpassword=x", "postgresql://host:5432/base"),
        ("postgresql://user:p@ss@host/base", "postgresql://..."),
        ("postgresql://user:p?ss@host/base", "postgresql://..."),
        ("http://host/base?password=a@b", "http://..."),
        ("http://user@host/base?password=a@b", "http://..."),
        ("postgresql+asyncpg://user@host/base", "postgresql+asyncpg://host/base"),
        ("postgresql://host/base", "postgresql://host/base"),
        ("sqlite:////home/of@somebody/db.sqlite", "sqlite:////home/of@somebody/db.sqlite"),
        ("127.0.0.1:9280", "127.0.0.1:9280"),
        ("INFO", "INFO"),
    ],
)
def test_addresses_lose_their_credentials(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


async def test_a_service_tells_services_only(tmp_path: Path) -> None:
    settings = settings_for("tuning", tmp_path)
    async with running(Application("tuning", [], settings={"limits": Inner(Path("/h"))}), settings) as client:
        stub = client.stub(settings_pb2_grpc.SettingsServiceStub)
        shown = (await stub.GetSettings(settings_pb2.GetSettingsRequest())).settings
        assert shown["home"] == str(tmp_path)
        assert "name" not in shown
        assert shown["limits.home"] == "/h"
        assert shown["data.roots"] == str(tmp_path / "data")
        assert settings.secret not in shown.values()
        with acting_as(ADMIN), pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetSettings(settings_pb2.GetSettingsRequest())
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_what_sounds_secret_is_marked_in_every_settings_class() -> None:
    classes = {ServiceSettings}
    for service in DEFAULT_PORTS:
        for module in ("settings", "wiring"):
            name = f"{service}_service.{module}"
            if importlib.util.find_spec(name):
                found = vars(importlib.import_module(name)).values()
                classes |= {each for each in found if is_dataclass(each) and each.__name__.endswith("Settings")}
    assert {"GatewaySettings", "LocalSettings", "TrainingSettings", "TritonSettings"} <= {c.__name__ for c in classes}
    marked = {f"{each.__name__}.{f.name}" for each in classes for f in fields(each) if f.metadata.get("left_out")}
    sounding = {f"{each.__name__}.{f.name}" for each in classes for f in fields(each) if SECRET_LIKE.search(f.name)}
    assert sounding
    assert sounding <= marked
