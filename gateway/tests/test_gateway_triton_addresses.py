"""Where Triton is, as Envoy reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gateway_service.envoy import write_config
from gateway_service.envoy.config import render_config
from gateway_service.envoy.endpoints import TRITON_GRPC, TRITON_HTTP, TritonEndpoints, endpoints_file
from gateway_service.envoy.inference import SLACK_BYTES
from gateway_service.envoy.surface import GRPC_ONLY, SILENT_SECONDS, PublicSurface
from gateway_service.settings import GatewaySettings
from servicekit.settings import ServiceSettings, SettingError


def addresses(home: Path) -> dict[str, list[tuple[str, int]]]:
    found = {}
    for cluster in (TRITON_HTTP, TRITON_GRPC):
        (resource,) = json.loads(endpoints_file(home, cluster).read_text())["resources"]
        assert resource["cluster_name"] == cluster
        places = [entry["endpoint"]["address"]["socket_address"] for entry in resource["endpoints"][0]["lb_endpoints"]]
        found[cluster] = [(place["address"], place["port_value"]) for place in places]
    return found


def publish(home: Path, content: Any) -> None:
    (home / "inference").mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (home / "inference" / "triton.json").write_text(text)


def test_addresses_follow_triton_json(tmp_path: Path) -> None:
    endpoints = TritonEndpoints(tmp_path)
    endpoints.write()
    assert addresses(tmp_path) == {TRITON_HTTP: [], TRITON_GRPC: []}
    publish(tmp_path, {"http": "http://127.0.0.1:8000", "grpc": "127.0.0.1:8001"})
    endpoints.write()
    assert addresses(tmp_path) == {TRITON_HTTP: [("127.0.0.1", 8000)], TRITON_GRPC: [("127.0.0.1", 8001)]}
    before = {cluster: endpoints_file(tmp_path, cluster).stat().st_ino for cluster in (TRITON_HTTP, TRITON_GRPC)}
    publish(tmp_path, {"http": "http://[::1]:8000", "grpc": "127.0.0.1:8001"})
    endpoints.write()
    assert addresses(tmp_path)[TRITON_HTTP] == [("::1", 8000)]
    after = {cluster: endpoints_file(tmp_path, cluster).stat().st_ino for cluster in (TRITON_HTTP, TRITON_GRPC)}
    # By a rename, and only what changed: each is a reason for Envoy to look.
    assert {cluster for cluster in before if before[cluster] != after[cluster]} == {TRITON_HTTP}
    (tmp_path / "inference" / "triton.json").unlink()
    endpoints.write()
    assert addresses(tmp_path) == {TRITON_HTTP: [], TRITON_GRPC: []}


def test_names_of_hosts_are_looked_up(tmp_path: Path) -> None:
    publish(tmp_path, {"http": "http://localhost:8000", "grpc": "localhost:8001"})
    TritonEndpoints(tmp_path).write()
    assert addresses(tmp_path)[TRITON_GRPC][0] in (("127.0.0.1", 8001), ("::1", 8001))


def test_ports_have_defaults(tmp_path: Path) -> None:
    publish(tmp_path, {"http": "http://127.0.0.1", "grpc": "127.0.0.1"})
    TritonEndpoints(tmp_path).write()
    assert addresses(tmp_path) == {TRITON_HTTP: [("127.0.0.1", 8000)], TRITON_GRPC: [("127.0.0.1", 8001)]}


@pytest.mark.parametrize("host", ["triton.invalid", "no" * 40 + ".invalid", "127.0.0.1:x", "127.0.0.1:70000"])
def test_what_has_no_address_is_no_triton_and_envoy_starts(tmp_path: Path, host: str) -> None:
    publish(tmp_path, {"http": f"http://{host}", "grpc": host})
    write_config(settings_of(tmp_path))
    assert addresses(tmp_path) == {TRITON_HTTP: [], TRITON_GRPC: []}


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"http": 5}'])
def test_a_file_that_says_nothing_is_no_triton(tmp_path: Path, content: str) -> None:
    publish(tmp_path, content)
    TritonEndpoints(tmp_path).write()
    assert addresses(tmp_path) == {TRITON_HTTP: [], TRITON_GRPC: []}


def settings_of(home: Path, **variables: str) -> GatewaySettings:
    environment = {"DLMESH_HOME": str(home), **variables}
    return GatewaySettings.from_environment(ServiceSettings.from_environment("gateway", environment), environment)


def routes_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return list(manager["route_config"]["virtual_hosts"][0]["routes"])


def test_no_route_leads_to_triton_without_the_mark(tmp_path: Path) -> None:
    surface = PublicSurface.from_contracts()
    configs = [render_config(settings_of(tmp_path), surface, cache_salt=salt) for salt in ("aa", "bb")]
    marks = []
    for config in configs:
        for listener in config["static_resources"]["listeners"]:
            manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
            for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
                if route.get("route", {}).get("cluster") in (TRITON_HTTP, TRITON_GRPC):
                    (header,) = route["match"]["headers"]
                    marks.append(header["string_match"]["exact"])
    # Two faces in two listeners; other marks at each start.
    assert (len(marks), len(set(marks))) == (8, 4)
    assert all(len(mark) == 64 for mark in marks)


def test_the_secret_of_the_platform_goes_to_its_services_alone(tmp_path: Path) -> None:
    config = render_config(settings_of(tmp_path), PublicSurface.from_contracts(), cache_salt="aa")
    secret = (tmp_path / "secret").read_text()
    for route in routes_of(config):
        cluster = route.get("route", {}).get("cluster", "")
        if cluster.startswith("triton") or cluster == "inference_inside":
            assert secret not in json.dumps(route)
        elif cluster and route["match"].get("path") != "/healthz":
            assert secret in json.dumps(route)


def test_streams_of_kernels_are_public_without_a_rest_face(tmp_path: Path) -> None:
    surface = PublicSurface.from_contracts()
    assert set(surface.services) > GRPC_ONLY
    assert not GRPC_ONLY & set(surface.transcoded_services)
    (method,) = [method for method in surface.methods if method.service in GRPC_ONLY]
    assert (method.name, method.rest, method.is_read, method.is_long) == ("StreamKernelTasks", (), False, True)
    config = render_config(settings_of(tmp_path), surface, cache_salt="aa")
    (route,) = [route for route in routes_of(config) if route["match"].get("path") == method.grpc_path]
    assert (route["route"]["timeout"], route["route"]["idle_timeout"]) == ("0s", "0s")


def test_work_that_may_take_long_is_not_cut(tmp_path: Path) -> None:
    surface = PublicSurface.from_contracts()
    # What is renamed is missed here.
    assert {method.grpc_path for method in surface.methods} > set(SILENT_SECONDS)
    routes = {
        route["match"].get("path"): route["route"]
        for route in routes_of(render_config(settings_of(tmp_path), surface, cache_salt="aa"))
        if "route" in route
    }
    for path, seconds in SILENT_SECONDS.items():
        assert (routes[path]["timeout"], routes[path]["idle_timeout"]) == ("0s", f"{seconds}s")
    longest_task_seconds = 86_400 + 60
    assert SILENT_SECONDS["/dlmesh.inference.v1.KernelModelService/InvokeKernelModel"] > longest_task_seconds


def test_limits_of_inference_are_settings(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, DLMESH_MAX_INFERENCE_BYTES="5", DLMESH_INFERENCE_TIMEOUT_SECONDS="2.5")
    config = render_config(settings, PublicSurface.from_contracts(), cache_salt="aa")
    limits = {route["request_body_buffer_limit"] for route in routes_of(config) if "request_body_buffer_limit" in route}
    assert limits == {5 + SLACK_BYTES}
    timeouts = {
        route["route"]["timeout"]
        for route in routes_of(config)
        if route.get("route", {}).get("cluster", "").startswith("triton")
    }
    assert timeouts == {"2.5s"}
    with pytest.raises(SettingError, match="DLMESH_MAX_INFERENCE_BYTES"):
        settings_of(tmp_path, DLMESH_MAX_INFERENCE_BYTES="many")


def test_memory_is_a_setting_with_a_least(tmp_path: Path) -> None:
    config = render_config(
        settings_of(tmp_path, DLMESH_ENVOY_MEMORY_BYTES=str(2**28)), PublicSurface.from_contracts(), cache_salt="aa"
    )
    heap = config["overload_manager"]["resource_monitors"][1]["typed_config"]
    assert heap["max_heap_size_bytes"] == 2**28
    assert settings_of(tmp_path).envoy_memory_bytes >= 2**30
    with pytest.raises(SettingError, match="DLMESH_ENVOY_MEMORY_BYTES"):
        settings_of(tmp_path, DLMESH_ENVOY_MEMORY_BYTES="1000")
