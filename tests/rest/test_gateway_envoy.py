"""A real Envoy before the real gateway service; the other services are one backend of real contract services."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import requests
from dlmesh.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from dlmesh.models.v1 import models_pb2_grpc
from gateway_room import (
    ADMIN,
    CACHE_SECONDS,
    PASSWORD,
    Peers,
    Platform,
    assert_error,
    basic_header,
    grpc_basic,
    running_platform,
    serves,
    wait_until,
)
from gateway_service.envoy.surface import PublicSurface
from google.protobuf import descriptor_pb2, empty_pb2, wrappers_pb2
from servicekit.errors import in_use, not_found, out_of_range, timed_out, too_large, too_many
from servicekit.identity import current_identity, job_token
from servicekit.settings import DEFAULT_PORTS, ServiceSettings

API = "/platform/rest/deeplearning/v1"
LOGON = "/platform/rest/conductor/v1/auth/logon"
USERS = "/platform/rest/dlmesh/v1/users"
DATABASE_PASSWORD = "of/the/database"


class Datasets(datasets_pb2_grpc.DatasetServiceServicer):
    """Answers by name; `GetDataset` shows who the platform thinks the caller is."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def CreateDataset(self, request: Any, context: Any) -> empty_pb2.Empty:
        return empty_pb2.Empty()

    async def StopDataset(self, request: Any, context: Any) -> empty_pb2.Empty:
        return empty_pb2.Empty()

    async def DeleteDataset(self, request: Any, context: Any) -> empty_pb2.Empty:
        raise_for(request.name)
        return empty_pb2.Empty()

    async def GetDataset(self, request: Any, context: Any) -> datasets_pb2.DatasetDetail:
        raise_for(request.name)
        identity = current_identity()
        headers = sorted(key for key, _ in context.invocation_metadata())
        return datasets_pb2.DatasetDetail(
            name=request.name, owner=f"{identity.user} {identity.is_admin}", status_message=" ".join(headers), shards=0
        )

    async def ListDatasets(self, request: Any, context: Any) -> AsyncIterator[datasets_pb2.DatasetDetail]:
        for name in self.names:
            yield datasets_pb2.DatasetDetail(name=name)


def raise_for(name: str) -> None:
    refusals = {
        "missing": not_found("dataset", "missing"),
        "used": in_use("dataset", "used", "model m"),
        "range": out_of_range("start", 9, "0 to 3"),
        "large": too_large("body", "9 bytes", "at most 8 bytes"),
        "full": too_many("8 tasks wait, which is the most", retry_after_seconds=7),
        "slow": timed_out("the task ran longer than 1 s"),
    }
    if name in refusals:
        raise refusals[name]
    if name.startswith("missing"):
        raise not_found("dataset", name)
    if name == "broken":
        raise RuntimeError("a secret of the implementation")


class Models(models_pb2_grpc.ModelServiceServicer):
    """File names and uploads."""

    def __init__(self) -> None:
        self.uploaded_bytes = 0

    async def ReadModelFile(self, request: Any, context: Any) -> wrappers_pb2.StringValue:
        return wrappers_pb2.StringValue(value=request.file_name)

    async def UploadWeightFile(self, requests: AsyncIterator[Any], context: Any) -> empty_pb2.Empty:
        self.uploaded_bytes = 0
        async for request in requests:
            self.uploaded_bytes += len(request.body.data)
        return empty_pb2.Empty()


class Backend(Peers):
    """Datasets and models; other services do not answer."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.datasets, self.models = Datasets(), Models()
        super().__init__(
            settings,
            [
                (
                    datasets_pb2_grpc.add_DatasetServiceServicer_to_server,
                    self.datasets,
                    "dlmesh.datasets.v1.DatasetService",
                ),
                (models_pb2_grpc.add_ModelServiceServicer_to_server, self.models, "dlmesh.models.v1.ModelService"),
            ],
        )


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    database_url = f"postgresql://dlmesh:{DATABASE_PASSWORD}@127.0.0.1:1/dlmesh?sslpassword={DATABASE_PASSWORD}"
    with running_platform(
        tmp_path_factory.mktemp("gateway"), Backend, peers_environment={"DLMESH_DATABASE_URL": database_url}
    ) as running:
        yield running


def rest_calls() -> list[tuple[str, str]]:
    """Every REST operation of the contract, path parameters filled."""
    return [
        (verb.upper(), re.sub(r"{[^}]*}", "x", template))
        for method in PublicSurface.from_contracts().methods
        for verb, template in method.rest
    ]


def grpc_methods() -> list[str]:
    """Every gRPC method that any service of ours has, the internal ones included."""
    files = descriptor_pb2.FileDescriptorSet.FromString(PublicSurface.from_contracts().descriptor_path.read_bytes())
    return [
        f"/{file.package}.{service.name}/{method.name}"
        for file in files.file
        for service in file.service
        for method in service.method
    ]


def raw_get(platform: Platform, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """A GET whose path goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", platform.port, timeout=10)
    try:
        connection.putrequest("GET", path, skip_accept_encoding=True)
        for key, value in (headers or {}).items():
            connection.putheader(key, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


# -- who may pass


def test_every_rest_operation_needs_credentials(platform: Platform) -> None:
    client = platform.client(None)
    calls = [call for call in rest_calls() if call != ("GET", "/healthz")]
    assert len(calls) > 70
    for verb, path in calls:
        body = assert_error(client.request(verb, platform.url(path)), 401, 16)
        assert body["details"] == []


def test_every_grpc_method_needs_credentials(platform: Platform) -> None:
    methods = [*grpc_methods(), "/grpc.health.v1.Health/Check", "/dlmesh.none.v1.None/None"]
    assert any("JobService" in method for method in methods)
    forged = (("x-dlmesh-user", "root"), ("x-dlmesh-secret", platform.secret), ("x-dlmesh-service", "models"))
    forged += (("x-dlmesh-job", "j"), ("x-dlmesh-job-token", job_token(platform.secret, "j")))
    with grpc.insecure_channel(f"127.0.0.1:{platform.port}") as channel:
        for method in methods:
            with pytest.raises(grpc.RpcError) as refusal:
                channel.unary_unary(method)(b"", metadata=forged, timeout=5)
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED, method


def test_internal_services_are_out_of_reach_with_credentials(platform: Platform) -> None:
    public = PublicSurface.from_contracts().services
    internal = [method for method in grpc_methods() if method.split("/")[1] not in public]
    assert any("JobService" in method for method in internal)
    assert any("Authorization" in method for method in internal)
    with grpc.insecure_channel(f"127.0.0.1:{platform.port}") as channel:
        for method in [*internal, "/grpc.health.v1.Health/Check"]:
            with pytest.raises(grpc.RpcError) as refusal:
                channel.unary_unary(method)(b"", metadata=grpc_basic(*ADMIN), timeout=5)
            assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED, method


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nope",
        f"/{API}/datasets",
        f"{API}//datasets",
        f"/healthz/..{API}/datasets",
        f"/healthz%2f..%2f{API}/datasets",
        f"{API}/./datasets",
        f"{API}/%64atasets",
        f"{API}/datasets;x=1",
        "/healthz/",
        "/HEALTHZ",
        "/dlmesh.datasets.v1.DatasetService/ListDatasets",
    ],
)
def test_no_spelling_of_a_path_passes_without_credentials(platform: Platform, path: str) -> None:
    assert raw_get(platform, path)[0] == 401


@pytest.mark.parametrize("verb", ["POST", "PUT", "HEAD", "OPTIONS", "DELETE"])
def test_only_get_of_healthz_is_open(platform: Platform, verb: str) -> None:
    assert platform.client(None).request(verb, platform.url("/healthz")).status_code == 401


def test_wrong_credentials(platform: Platform) -> None:
    for user in (("Admin", "wrong"), ("nobody", PASSWORD)):
        answer = platform.client(user).get(platform.url(f"{API}/datasets"))
        assert_error(answer, 401, 16)
        assert answer.headers["www-authenticate"].startswith("Basic ")


def test_forged_identity_is_ignored_with_and_without_the_cache(platform: Platform) -> None:
    admin = platform.client()
    alice = {"name": "alice", "password": "password of alice", "role": "user"}
    assert admin.post(platform.url(USERS), json=alice).status_code == 201
    client = platform.client(("alice", "password of alice"))
    forged = {"x-dlmesh-user": "root", "X-DLMESH-Admin": "1", "x-dlmesh-service": "models", "x-dlmesh-job": "1"}
    for _ in range(4):
        detail = client.get(platform.url(f"{API}/datasets/d"), headers=forged).json()
        assert detail["createUser"] == "alice False"
        seen = detail["statusMessage"].split()
        assert not {"authorization", "cookie", "x-auth-token", "x-dlmesh-service", "x-dlmesh-job"} & set(seen)
    assert_error(client.get(platform.url(USERS)), 403, 7)
    assert_error(client.post(platform.url(USERS), json=alice | {"name": "eve"}), 403, 7)


# -- the shape of answers


def test_arrays_are_bare(platform: Platform) -> None:
    client, datasets = platform.client(), platform.backend.datasets
    datasets.names = []
    answer = client.get(platform.url(f"{API}/datasets"))
    assert (answer.status_code, answer.text) == (200, "[]")
    datasets.names = ["a", "b"]
    answer = client.get(platform.url(f"{API}/datasets"))
    # Lists are there when they are empty; scalars are when the service set them.
    empty = {"trainlabels": [], "vallabels": [], "testlabels": []}
    assert answer.json() == [{"name": "a", **empty}, {"name": "b", **empty}]
    assert answer.headers["content-type"] == "application/json"


def test_success_codes_and_empty_bodies(platform: Platform) -> None:
    client = platform.client()
    for verb, path, body, status in (
        ("POST", "/datasets", {"name": "d", "notInTheContract": 1}, 201),
        ("PUT", "/datasets/d/stop", None, 200),
        ("DELETE", "/datasets/d", None, 204),
    ):
        for _ in range(2):
            answer = client.request(verb, platform.url(API + path), json=body)
            assert (answer.status_code, answer.content) == (status, b"")
            assert "content-type" not in answer.headers
            assert not [name for name in answer.headers if name.startswith(("grpc-", "x-http-", "server", "x-envoy"))]
    detail = client.get(platform.url(f"{API}/datasets/d")).json()
    assert detail["shards"] == 0, "a zero that was set is printed"


def test_errors_of_a_service(platform: Platform) -> None:
    client = platform.client()
    body = assert_error(client.get(platform.url(f"{API}/datasets/missing")), 404, 5)
    assert body["details"][0]["reason"] == "NOT_FOUND"
    assert body["details"][0]["domain"] == "dlmesh"
    assert body["details"][0]["metadata"] == {"kind": "dataset", "name": "missing"}
    assert_error(client.delete(platform.url(f"{API}/datasets/used")), 409, 10)
    assert_error(client.get(platform.url(f"{API}/datasets/range")), 416, 11)
    body = assert_error(client.get(platform.url(f"{API}/datasets/broken")), 500, 13)
    assert "secret" not in json.dumps(body)
    assert_error(client.get(platform.url(f"{API}/modeltemplates")), 501, 12)


def test_what_is_too_much_says_whether_to_come_again(platform: Platform) -> None:
    client = platform.client()
    for verb in (client.get, client.delete):
        later = verb(platform.url(f"{API}/datasets/full"))
        assert_error(later, 429, 8)
        assert later.headers["Retry-After"] == "7"
        never = verb(platform.url(f"{API}/datasets/large"))
        assert_error(never, 413, 8)
        assert "Retry-After" not in never.headers
        assert_error(verb(platform.url(f"{API}/datasets/slow")), 504, 4)


@pytest.mark.parametrize("text", ['{"name":', '{"name": {}}', "[1]", "nonsense"])
def test_malformed_json_is_400_with_the_reason(platform: Platform, text: str) -> None:
    answer = platform.client().post(platform.url(f"{API}/datasets"), data=text)
    assert_error(answer, 400, 3)


def test_a_wrong_type_names_the_field_as_it_was_sent(platform: Platform) -> None:
    client, url = platform.client(), platform.url(f"{API}/datasets")
    body = assert_error(client.post(url, json={"dbbackend": 5}), 400, 3)
    assert body["message"].startswith("dbbackend: invalid value 5")
    body = assert_error(client.post(url, json={"imagedetail": {"valpercentage": "many"}}), 400, 3)
    assert body["message"].startswith("imagedetail.valpercentage: invalid value")


def test_unknown_paths_verbs_and_query_parameters(platform: Platform) -> None:
    client = platform.client()
    assert_error(client.get(platform.url("/nope")), 404, 5)
    assert_error(client.get(platform.url(f"{API}/nope")), 404, 5)
    assert_error(client.patch(platform.url(f"{API}/datasets")), 404, 5)
    body = assert_error(client.get(platform.url(f"{API}/datasets?colour=red")), 400, 3)
    assert "colour" in body["message"]
    assert client.get(platform.url(f"{API}/datasets?csrftoken=any")).status_code == 200


def test_nothing_wins_over_the_name_in_the_path(platform: Platform) -> None:
    client = platform.client()
    assert client.get(platform.url(f"{API}/datasets/one?name=other")).json()["name"] == "one"
    url = platform.url(f"{USERS}/one/password")
    body = assert_error(client.put(url, json={"name": "other", "password": "some password"}), 400, 3)
    assert "other" in body["message"]
    assert_error(client.put(url, json={"name": "one", "password": "some password"}), 404, 5)


def test_json_bodies_have_a_limit(platform: Platform) -> None:
    client, url = platform.client(), platform.url(f"{API}/datasets")
    assert client.post(url, json={"name": "x" * 5_000_000}).status_code == 201
    too_long = "x" * 17_000_000
    assert "at most 16777216 bytes" in assert_error(client.post(url, data=too_long), 413, 8)["message"]
    assert_error(client.post(url, data=(part for part in [too_long.encode()])), 413, 8)


def test_oversized_headers_are_431(platform: Platform) -> None:
    assert platform.client().get(platform.url("/"), headers={"x-long": "x" * 40_000}).status_code == 431


@pytest.mark.parametrize("length", [1_000, 10_000, 30_000])
def test_a_name_as_long_as_headers_may_be_is_answered_by_the_service(platform: Platform, length: int) -> None:
    client, name = platform.client(), "missing" + "x" * length
    body = assert_error(client.get(platform.url(f"{API}/datasets/{name}")), 404, 5)
    assert body["message"].startswith("dataset 'missingxxx")
    assert len(body["message"]) < 300


@pytest.mark.parametrize("name", ["main.py", "a/b.py", "a b/ü+%.py", "../x"])
def test_file_names_may_hold_encoded_slashes(platform: Platform, name: str) -> None:
    path = f"{API}/models/files/{requests.utils.quote(name, safe='')}"
    status, body = raw_get(platform, path, basic_header(*ADMIN))
    assert (status, json.loads(body)) == (200, name)


def test_upload_is_streamed(platform: Platform) -> None:
    size, chunk = 128 * 1024 * 1024, bytes(1024 * 1024)
    before, peak, done = platform.envoy.memory_info().rss, 0, threading.Event()

    def watch() -> int:
        highest = 0
        while not done.wait(0.02):
            highest = max(highest, platform.envoy.memory_info().rss)
        return highest

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        answer = platform.client().post(
            platform.url(f"{API}/models/weightfile"),
            data=(chunk for _ in range(size // len(chunk))),
            headers={"content-type": "multipart/form-data; boundary=b"},
        )
        done.set()
        peak = watching.result()
    assert (answer.status_code, answer.content) == (201, b"")
    assert platform.backend.models.uploaded_bytes == size
    assert peak - before < size / 2, f"Envoy grew by {(peak - before) >> 20} MiB"


# -- gRPC through the same port


def test_grpc_clients_use_the_same_port(platform: Platform) -> None:
    platform.backend.datasets.names = ["a"]
    with grpc.insecure_channel(f"127.0.0.1:{platform.port}") as channel:
        stub, metadata = datasets_pb2_grpc.DatasetServiceStub(channel), grpc_basic(*ADMIN)
        for _ in range(2):
            detail = stub.GetDataset(datasets_pb2.GetDatasetRequest(name="d"), metadata=metadata, timeout=5)
            assert detail.owner == "Admin True"
        listed = stub.ListDatasets(datasets_pb2.ListDatasetsRequest(), metadata=metadata, timeout=5)
        assert [dataset.name for dataset in listed] == ["a"]
        stub.CreateDataset(datasets_pb2.CreateDatasetRequest(name="d"), metadata=metadata, timeout=5)
        with pytest.raises(grpc.RpcError) as refusal:
            stub.GetDataset(datasets_pb2.GetDatasetRequest(name="missing"), metadata=metadata, timeout=5)
        assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as refusal:
            stub.GetDataset(datasets_pb2.GetDatasetRequest(name="d"), timeout=5)
        assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "credentials" in str(refusal.value.details())


# -- sessions, users, the credential cache


def test_session_with_csrf_token(platform: Platform) -> None:
    logon = platform.client()
    answer = logon.get(platform.url(LOGON))
    assert answer.status_code == 200
    csrf_token = answer.json()["csrftoken"]
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    token = answer.cookies["platform.rest.token"]

    browser = platform.client(None)
    browser.cookies.set("platform.rest.token", token)
    for _ in range(2):
        assert browser.get(platform.url(f"{API}/datasets/d")).json()["createUser"] == "Admin True"
        assert_error(browser.post(platform.url(f"{API}/datasets"), json={}), 403, 7)
        assert_error(browser.post(platform.url(f"{API}/datasets?csrftoken=wrong"), json={}), 403, 7)
        assert browser.post(platform.url(f"{API}/datasets?csrftoken={csrf_token}"), json={}).status_code == 201
    assert "csrftoken" not in (platform.home / "out").read_text()

    program = platform.client(None)
    for headers in ({"authorization": f"Bearer {token}"}, {"x-auth-token": token}):
        assert program.post(platform.url(f"{API}/datasets"), json={}, headers=headers).status_code == 201
    assert_error(program.get(platform.url(f"{API}/datasets"), headers={"x-auth-token": "other"}), 401, 16)


def test_verified_credentials_are_cached_and_expire_after_a_password_change(platform: Platform) -> None:
    admin, url = platform.client(), platform.url(f"{API}/datasets")
    assert admin.post(platform.url(USERS), json={"name": "bob", "password": "password one"}).status_code == 201
    bob = platform.client(("bob", "password one"))
    assert bob.get(url).status_code == 200
    checks = platform.counter("http.public.ext_authz.ok")
    for _ in range(50):
        assert bob.get(url).status_code == 200
    assert platform.counter("http.public.ext_authz.ok") - checks <= 4
    assert bob.put(platform.url(f"{USERS}/bob/password"), json={"password": "password two"}).status_code == 204
    assert platform.client(("bob", "password two")).get(url).status_code == 200
    wait_until(lambda: bob.get(url).status_code == 401, CACHE_SECONDS + 2)
    assert admin.delete(platform.url(f"{USERS}/bob")).status_code == 204
    two = platform.client(("bob", "password two"))
    wait_until(lambda: two.get(url).status_code == 401, CACHE_SECONDS + 2)
    assert "bob" not in {user["name"] for user in admin.get(platform.url(USERS)).json()}


@pytest.mark.parametrize("path", ["/datasets/%FF", "/models/files/m%2F%C3%28"])
def test_a_path_that_is_not_utf8_is_a_bad_request(platform: Platform, path: str) -> None:
    body = assert_error(platform.client().get(platform.url(API + path)), 400, 3)
    assert "not UTF-8" in body["message"]


def test_configuration_shows_no_secret(platform: Platform) -> None:
    folder = platform.home / "inference"
    folder.mkdir(exist_ok=True)
    (folder / "triton.json").write_text('{"http": "http://127.0.0.1:1", "grpc": "127.0.0.1:2"}')
    answer = platform.client().get(platform.url(f"{API}/conf"))
    assert answer.status_code == 200
    configuration = answer.json()
    assert configuration["triton.grpc.url"] == "127.0.0.1:2"
    assert configuration["dlmesh.gateway.home"] == str(platform.home)
    assert configuration["dlmesh.gateway.http.port"] == str(platform.port)
    assert configuration["dlmesh.gateway.credential.cache.seconds"] == "1"
    assert configuration["dlmesh.gateway.session.seconds"] == "28800", "a default is in effect, too"
    assert {key.split(".")[1] for key in configuration if key.startswith("dlmesh.")} == {*DEFAULT_PORTS, "version"}
    assert all(isinstance(value, str) for value in configuration.values())
    for secret in (platform.secret, PASSWORD, DATABASE_PASSWORD):
        assert secret not in answer.text
    assert configuration["dlmesh.datasets.database.url"] == "postgresql://127.0.0.1:1/dlmesh"
    assert (platform.home / "run" / "envoy.json").stat().st_mode & 0o777 == 0o600


def test_configuration_is_for_administrators(platform: Platform) -> None:
    url = platform.url(f"{API}/conf")
    assert_error(requests.get(url, timeout=10), 401, 16)
    platform.client().post(platform.url(USERS), json={"name": "reader", "password": "password one"})
    refused = platform.client(("reader", "password one")).get(url)
    assert_error(refused, 403, 7)
    assert "only an administrator" in refused.json()["message"]


# -- a service that goes away (last: these restart what the others use)


def test_callers_wait_for_a_gateway_service_that_was_killed(platform: Platform) -> None:
    known = platform.client()
    assert known.get(platform.url(f"{API}/datasets")).status_code == 200
    platform.gateway.kill()
    platform.gateway.wait(5)
    assert_error(requests.get(platform.url("/healthz"), timeout=10), 503, 14)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(platform.client(("alice", "password of alice")).get, platform.url(f"{API}/datasets/d"))
        platform.gateway = platform.start_gateway()
        assert answer.result(15).json()["createUser"] == "alice False"
    wait_until(lambda: serves(platform), 5)


def test_health_and_patience_while_a_service_restarts(platform: Platform) -> None:
    client = platform.client()
    assert client.get(platform.url(f"{API}/datasets")).status_code == 200
    platform.backend.stop()
    wait_until(lambda: requests.get(platform.url("/healthz"), timeout=5).status_code == 503, 3)
    body = requests.get(platform.url("/healthz"), timeout=5).json()
    assert body["status"] == "NOT_SERVING"
    assert body["services"]["gateway"] == "SERVING"
    assert body["services"]["datasets"] == "UNREACHABLE"
    assert set(body["services"]) == set(DEFAULT_PORTS)
    with ThreadPoolExecutor(2) as pool:
        read = pool.submit(client.get, platform.url(f"{API}/datasets/d"))
        write = pool.submit(platform.client().post, platform.url(f"{API}/datasets"), json={})
        wait_until(lambda: platform.counter("cluster.datasets.upstream_rq_retry") >= 3, 5)
        platform.backend.start()
        assert read.result(10).status_code == 200
        assert write.result(10).status_code == 201
    wait_until(lambda: serves(platform), 5)
