"""Elastic Distributed Inference through Envoy: kernels of the original API, published, started, asked and stopped."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import pytest
import requests
from dlmesh.inference.v1 import kernels_pb2, kernels_pb2_grpc
from dlmesh_platform.client import API, ApiError, Client
from dlmesh_platform.launch import RunningPlatform
from ibm_cloud_sdk_core.authenticators import BasicAuthenticator
from ibm_wmla.wmla_api_v1 import Attr, DeepLearningImpactV1, Policy
from ibm_wmla.wmla_api_v1 import Kernel as KernelSettings
from kernel_programs import CANNOT_START, CLASSIFICATION, MISBEHAVING, NO_KERNEL, PING_PONG
from PIL import Image

pytestmark = [pytest.mark.platform, pytest.mark.slow]

PATIENCE_SECONDS = 180.0


class Kernels:
    """A client of /edimodels that removes what a test has published."""

    def __init__(self, platform: RunningPlatform, admin: Client) -> None:
        self._admin, self._url = admin, platform.url
        self.password = (platform.home / "admin_password").read_text().strip()
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.auth = ("Admin", self.password)
        self._data = platform.home / "data"

    def write(self, name: str, files: Mapping[str, str]) -> str:
        """A folder below the data root; its path there."""
        folder = self._data / "kernels" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / file).write_text(content)
        return f"kernels/{name}"

    def upload(self, name: str, files: Mapping[str, str]) -> requests.Response:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for file, content in files.items():
                member = tarfile.TarInfo(f"{name}/{file}")
                member.size = len(content.encode())
                archive.addfile(member, io.BytesIO(content.encode()))
        url = f"{self._url}{API}/edimodels/{name}/upload"
        return self.session.post(url, files={"file": (None, buffer.getvalue())}, timeout=60)

    def get(self, name: str) -> Any:
        return self._admin.get(f"/edimodels/{name}")

    def reach(self, name: str, *states: str) -> Any:
        def has_moved(model: Any) -> bool:
            return model["state"] in states

        return wait(lambda: self.get(name), has_moved)

    def start(self, name: str, *states: str) -> Any:
        self._admin.put(f"/edimodels/{name}/operation/start", {})
        return self.reach(name, *(states or ("STARTED",)))

    def stop(self, name: str) -> Any:
        self._admin.put(f"/edimodels/{name}/operation/stop", {})
        return self.reach(name, "STOPPED")

    def invoke(self, name: str, text: str | bytes) -> requests.Response:
        return self.session.post(f"{self._url}/dlim/v1/inference/{name}", data=text, timeout=PATIENCE_SECONDS)

    def remove_all(self) -> None:
        for model in self._admin.get("/edimodels"):
            self.stop(model["name"])
            self._admin.delete(f"/edimodels/{model['name']}")
        self.session.close()


def wait(look: Callable[[], Any], is_enough: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_enough(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


@pytest.fixture
def kernels(platform: RunningPlatform, admin: Client) -> Iterator[Kernels]:
    made = Kernels(platform, admin)
    yield made
    made.remove_all()


def picture(level: int) -> str:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), level).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_the_published_client_runs_kernels_of_the_original_api(platform: RunningPlatform, kernels: Kernels) -> None:
    client = DeepLearningImpactV1(authenticator=BasicAuthenticator("Admin", kernels.password))
    client.set_service_url(platform.url)
    manifest = {
        "name": "bright",
        "weight_path": "weights.json",
        "runtime": "dlipy3",
        "attributes": [{"key": "kind", "value": "none"}],
    }
    files = {
        "kernel.py": CLASSIFICATION,
        "weights.json": '{"dark": 0, "light": 255}',
        "model.json": json.dumps(manifest),
        "README.md": "# Dark or light\n",
    }
    folder = kernels.write("bright", files)
    made = client.publish_edi_model(
        "bright",
        edi_py="kernel.py",
        name="bright",
        model_path=folder,
        weight_path="weights.json",
        runtime="dlipy3",
        attribute='[{"key": "kind", "value": "classification"}]',
        mcenv='[{"name": "COLOUR", "value": "grey"}]',
    )
    assert made.get_status_code() == 201
    kernels.write("ping", {"kernel.py": PING_PONG, "w": ""})
    made = client.new_edi_model(
        edi_py="kernel.py", name="ping", model_path="kernels/ping", weight_path="w", runtime="dlipy3"
    )
    assert made.get_status_code() == 201
    listed = client.get_edi_models().get_result()
    assert [(one["name"], one["state"], one["creator"]) for one in listed] == [
        ("bright", "STOPPED", "Admin"),
        ("ping", "STOPPED", "Admin"),
    ]
    assert client.get_edi_model_readme("bright").get_result() == {"readme": "# Dark or light\n"}
    client.update_edi_model("bright", name="bright", tag="second", mk_instance_max=1)
    shown = client.get_edi_model("bright").get_result()
    assert (shown["tag"], shown["mk_instance_max"], shown["mc_instance_max"]) == ("second", 1, 1)
    assert shown["mk_environments"] == [{"name": "COLOUR", "value": "grey"}]
    client.update_edi_model_porfile(
        "bright", name="bright", policy=Policy(task_batch_size=4), kernel=KernelSettings(umask="027")
    )
    profile = client.get_edi_model_porfile("bright").get_result()
    assert (profile["policy"]["task_batch_size"], profile["policy"]["kernel_max"]) == (4, 1)
    assert (profile["kernel"]["umask"], profile["kernel"]["gpu"], profile["replica"]) == ("027", "no", 1)

    assert client.start_edi_model("bright").get_status_code() == 200
    kernels.reach("bright", "STARTED")
    answer = client.do_edi_inference(
        "bright",
        action_type="Classification",
        data_type="image:raw_data",
        data_value=[Attr(key="a.png", value=picture(10)), Attr(key="b.png", value=picture(250))],
        attributes=[Attr(key="threshold", value="0.5")],
    ).get_result()
    assert (answer["modelName"], answer["reslove"], "other" in answer) == ("bright", True, False)
    [result] = answer["results"]
    samples = {one["sampleId"]: one["results"] for one in result["classificationResults"]}
    assert result["type"] == "classification"
    assert {name: [score["label"] for score in scores] for name, scores in samples.items()} == {
        "a.png": ["dark"],
        "b.png": ["light"],
    }
    assert samples["a.png"][0]["prob"] == pytest.approx((1 / 11) / (1 / 11 + 1 / 246))
    # A picture that is none is the kernel's to tell.
    answer = client.do_edi_inference(
        "bright", "Classification", "image:raw_data", [Attr(key="c", value="no")]
    ).get_result()
    assert answer["reslove"] is False
    assert "error" in json.loads(answer["other"])

    [daemon] = client.get_edi_model_instance("bright").get_result()["instance"]["instances"]
    assert daemon["pending_number"] == 0
    assert sum(kernel["finish_task"] for kernel in daemon["isd_container"]) == 2
    assert all(kernel["container_uid"] and kernel["container_host"] for kernel in daemon["isd_container"])
    uri = client.get_edi_model_streaming("bright").get_result()
    host = platform.url.removeprefix("http://")
    assert uri == f"grpc://{host}/dlmesh.inference.v1.KernelStreamService/StreamKernelTasks"
    assert client.stop_edi_model("bright").get_status_code() == 200
    kernels.reach("bright", "STOPPED")
    assert client.delete_edi_model("bright").get_status_code() == 204
    assert [one["name"] for one in client.get_edi_models().get_result()] == ["ping"]
    client.http_client.close()


def test_ping_pong_is_uploaded_invoked_and_streamed_to(platform: RunningPlatform, kernels: Kernels) -> None:
    assert kernels.upload("pong", {"kernel.py": PING_PONG}).status_code == 201
    assert kernels.upload("pong", {"kernel.py": PING_PONG}).status_code == 409
    assert kernels.invoke("pong", "ping").status_code == 409
    kernels.start("pong")
    answer = kernels.invoke("pong", "grüß".encode())
    assert (answer.status_code, answer.content.decode()) == (200, "pong grüß")
    assert answer.headers["content-type"].startswith("text/plain")
    large = "x" * 5_000_000
    assert kernels.invoke("pong", large).text == f"pong {large}"
    assert kernels.invoke("pong", b"\xff").status_code == 400
    assert kernels.invoke("pong", "x" * 17_000_000).status_code == 413
    assert kernels.invoke("none", "ping").status_code == 404

    word = base64.b64encode(f"Admin:{kernels.password}".encode()).decode()
    with grpc.insecure_channel(platform.url.removeprefix("http://")) as channel:
        stub = kernels_pb2_grpc.KernelStreamServiceStub(channel)
        tasks = [kernels_pb2.StreamKernelTasksRequest(name="pong", id=str(n), input=str(n)) for n in range(300)]
        tasks.append(kernels_pb2.StreamKernelTasksRequest(name="none", id="lost", input="x"))
        answers = stub.StreamKernelTasks(iter(tasks), metadata=(("authorization", f"Basic {word}"),), timeout=120)
        found = {one.id: one for one in answers}
    assert "'none' does not exist" in found.pop("lost").error
    assert {name: one.output for name, one in found.items()} == {str(n): f"pong {n}" for n in range(300)}
    kernels.stop("pong")
    assert kernels.invoke("pong", "ping").status_code == 409


def test_another_user_may_not(kernels: Kernels, new_user: Callable[[str], Client]) -> None:
    assert kernels.upload("pong", {"kernel.py": PING_PONG}).status_code == 201
    ann = new_user("ann")
    assert ann.get("/edimodels") == []
    for verb, path in (("GET", ""), ("PUT", "/operation/start"), ("DELETE", ""), ("GET", "/instance")):
        with pytest.raises(ApiError) as caught:
            ann.request(verb, f"/edimodels/pong{path}")
        assert caught.value.status == 403


def test_kernels_that_misbehave_hurt_nobody_else(admin: Client, kernels: Kernels) -> None:
    assert kernels.upload("good", {"kernel.py": PING_PONG}).status_code == 201
    manifest = {"mk_resource_req": "mem=64,mem_limit=300", "mk_instance_max": 1}
    assert kernels.upload("bad", {"kernel.py": MISBEHAVING, "model.json": json.dumps(manifest)}).status_code == 201
    admin.put("/edimodels/bad/appprofile", {"name": "bad", "policy": {"task_execution_timeout": 4}})
    kernels.start("good")
    kernels.start("bad")
    for what, status, words in (
        ("raise", 500, "ValueError: the kernel says no"),
        ("nothing", 500, "no output"),
        ("exit", 500, "words before the end"),
        ("loop", 504, "4 s"),
        ("leak", 500, "memory"),
    ):
        answer = kernels.invoke("bad", what)
        assert (answer.status_code, words in answer.json()["message"]) == (status, True), (what, answer.text)
        assert kernels.invoke("bad", "again").text == "fine again"
        assert kernels.invoke("good", "ping").text == "pong ping"
    # Whatever it writes where is its own loss.
    assert kernels.invoke("bad", "junk").status_code in (200, 500, 504)
    assert kernels.invoke("bad", "again").text == "fine again"
    assert kernels.get("bad")["state"] == "STARTED"

    for name, program, words in (
        ("unready", CANNOT_START, "there are no weights"),
        ("none", NO_KERNEL, "without Kernel.run()"),
    ):
        assert kernels.upload(name, {"kernel.py": program}).status_code == 201
        model = kernels.start(name, "FAILED", "STARTED")
        assert model["state"] == "FAILED"
        assert words in model["statusMessage"]
        assert kernels.invoke(name, "ping").status_code == 409
    assert kernels.invoke("good", "ping").text == "pong ping"


def test_what_is_started_comes_back_with_the_service(platform: RunningPlatform, kernels: Kernels) -> None:
    assert kernels.upload("pong", {"kernel.py": PING_PONG}).status_code == 201
    kernels.start("pong")
    os.kill(platform.pids()["inference"], signal.SIGKILL)

    def answers() -> Any:
        return kernels.invoke("pong", "ping")

    # While the service is away the gateway says so; nothing else is answered in between.
    assert wait(answers, lambda answer: answer.status_code not in (502, 503)).text == "pong ping"
    assert kernels.get("pong")["state"] == "STARTED"
