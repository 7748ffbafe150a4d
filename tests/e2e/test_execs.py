"""Exec tasks through the gateway, as plain requests and the published client start them."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from dlmesh_platform.client import API, ApiError, Client
from dlmesh_platform.launch import RunningPlatform
from ibm_cloud_sdk_core.api_exception import ApiException
from ibm_cloud_sdk_core.authenticators import BasicAuthenticator
from ibm_wmla.wmla_api_v1 import DeepLearningImpactV1

pytestmark = [pytest.mark.platform, pytest.mark.slow]

ENDED = frozenset({"FINISHED", "ERROR", "KILLED"})
START = "--exec-start PyTorch --model-main main.py"


def tar_of(**files: str) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"mnist/{name}.py")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return target.getvalue()


def start(client: Client, program: str | bytes, arguments: str = START, **options: Any) -> Any:
    files = {"file": ("main.py" if isinstance(program, str) else "m.modelDir.tar", program)}
    query = {"sigName": "local", "args": arguments, **options}
    return client.request("POST", "/execs", params=query, files=files).json()


def ended(client: Client, started: Any, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while (task := client.get(f"/execs/{started['id']}"))["state"] not in ENDED:
        assert time.monotonic() < deadline, task
        time.sleep(0.05)
    return task


def read(client: Client, path: str, **query: str) -> str:
    return client.request("GET", path, params=query).content.decode()


def finished(client: Client, *arguments: Any, seconds: float = 60, **options: Any) -> Any:
    task = ended(client, start(client, *arguments, **options), seconds)
    errors = read(client, f"/execs/{task['id']}/log", logType="errlog")
    assert task["state"] == "FINISHED", f"{task}\n{errors}"
    return task


PROGRAM = """
import os, pathlib, sys
import torch
from emetrics import EMetrics
print("Total iterations: 1", *sys.argv[1:])
with EMetrics.open() as metrics:
    metrics.record("train", 1, {"loss": 0.25})
torch.save(torch.nn.Linear(2, 2).state_dict(), pathlib.Path(os.environ["RESULT_DIR"], "model", "model_epoch_1.pth"))
"""


def test_plain_requests(admin: Client) -> None:
    response = admin.request(
        "POST",
        "/execs",
        params={"sigName": "local", "args": f"{START}   --epochs 3  --name 'a b' --plus=1+1"},
        files={"file": ("m.modelDir.tar", tar_of(main=PROGRAM))},
        headers={"Accept": "application/json"},
    )
    assert response.status_code == 201
    started = response.json()
    assert started["args"] == f"{START}   --epochs 3  --name 'a b' --plus=1+1"
    assert (started["state"], started["userName"], started["sigName"]) == ("SUBMITTED", "Admin", "local")
    assert all(started[name] for name in ("id", "sigId", "submissionId", "appId", "masterURL", "executionUserName"))
    task = ended(admin, started)
    assert task["state"] == "FINISHED"
    assert task["finishTime"] >= task["createTime"]
    path = f"/execs/{task['id']}"
    assert task["id"] in [row["id"] for row in admin.get("/execs")]

    json_only = {"Accept": "application/json"}
    response = admin.request("GET", f"{path}/log", headers=json_only)
    assert response.headers["Content-Type"] == "application/json"
    assert json.loads(response.json())["values"]["loss"]["value"] == "0.25"
    response = admin.request("GET", f"{path}/log", params={"logType": "outlog"}, headers=json_only)
    assert response.headers["Content-Type"].startswith("text/plain")
    assert response.text == "Total iterations: 1 --epochs 3 --name a b --plus=1+1\n"
    assert read(admin, f"{path}/log", logType="errlog") == ""

    response = admin.request("GET", f"{path}/result", headers={"Accept": "application/octet-stream"})
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert response.headers["Content-Disposition"].endswith(f'.zip"; size={len(response.content)}')
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.namelist() == ["model_epoch_1.pth"]
        assert archive.testzip() is None
    assert admin.request("GET", f"{path}/result").content == response.content
    as_json = admin.request("GET", f"{path}/result", headers=json_only)
    assert as_json.headers["Content-Type"] == "application/json"
    assert base64.b64decode(as_json.json()["trainResult"]) == response.content

    assert admin.request("POST", f"{path}/stop").status_code == 200
    assert admin.request("DELETE", path).status_code == 200
    with pytest.raises(ApiError, match="execId") as caught:
        admin.get(path)
    assert caught.value.status == 400


def test_args_with_blanks_of_both_kinds(platform: RunningPlatform, admin: Client) -> None:
    password = (platform.home / "admin_password").read_text().strip()
    for blank in ("+", "%20"):
        line = START.replace(" ", blank) + f"{blank * 3}--a%2Bb"
        response = requests.post(
            f"{platform.url}{API}/execs?args={line}",
            files={"file": ("main.py", "import sys; print(sys.argv[1:])")},
            auth=("Admin", password),
            timeout=60,
        )
        assert response.status_code == 201, response.text
        task = ended(admin, response.json())
        assert read(admin, f"/execs/{task['id']}/log", logType="outlog") == "['--a+b']\n"


def test_refusals_are_plain(admin: Client) -> None:
    for arguments, says in (
        ("--exec-start Torch --model-main main.py", "one of PyTorch, distPyTorch"),
        (f"{START} --x 'open", "args, character 47"),
        ("--exec-start distPyTorch --numWorker 4096 --model-main main.py", "numWorker: 4096"),
    ):
        with pytest.raises(ApiError, match=says) as caught:
            start(admin, "print(1)", arguments)
        assert caught.value.status == 400
    with pytest.raises(ApiError, match="one of local"):
        start(admin, "print(1)", sigName="moon")
    with pytest.raises(ApiError, match="not UTF-8") as caught:
        admin.request("POST", "/execs?sigName=local&args=%FF", data=b"pass")
    assert caught.value.status == 400
    with pytest.raises(ApiError, match="--model-main") as caught:
        # Refused though most of it was not sent yet.
        start(admin, b"x" * 40_000_000, "--exec-start PyTorch")
    assert caught.value.status == 400
    with pytest.raises(ApiError) as caught:
        admin.get("/execs/unknown/log")
    assert caught.value.status == 400


def test_a_log_is_followed(admin: Client) -> None:
    task = start(admin, "import time\nprint('up', flush=True)\ntime.sleep(600)")
    path = f"/execs/{task['id']}"
    with admin.request("GET", f"{path}/log", params={"logType": "outlog", "follow": "true"}, stream=True) as response:
        lines = response.iter_lines(chunk_size=1)
        assert next(lines) == b"up"
        with pytest.raises(ApiError, match="RUNNING") as caught:
            admin.request("GET", f"{path}/result")
        assert caught.value.status == 409
        admin.request("POST", f"{path}/stop")
        assert list(lines) == []
    assert ended(admin, task)["state"] == "KILLED"


def test_users_see_and_delete_their_own(admin: Client, new_user: Callable[[str], Client]) -> None:
    ann, bob = new_user("ann"), new_user("bob")
    tasks = [start(ann, "print(1)"), start(ann, "import time; time.sleep(600)")]
    assert sorted(row["id"] for row in ann.get("/execs")) == sorted(task["id"] for task in tasks)
    assert bob.get("/execs") == []
    with pytest.raises(ApiError) as caught:
        bob.get(f"/execs/{tasks[0]['id']}")
    assert caught.value.status == 403
    assert bob.request("DELETE", "/execs").json() == 0
    assert ann.request("DELETE", "/execs").json() == 2
    assert ann.get("/execs") == []
    kept = {task["id"] for task in tasks}
    admin.until(lambda: not kept & {row["applicationid"] for row in admin.get("/scheduler/applications")}, seconds=60)


def test_frameworks(admin: Client) -> None:
    rows = {row["name"]: row for row in admin.get("/execs/frameworks")}
    assert rows.keys() >= {
        *("PyTorch", "distPyTorch", "edtPyTorch", "tensorflow", "disttensorflow", "edtTensorflow", "keras", "edtKeras")
    }
    assert rows["distPyTorch"]["desc"][1].startswith("--exec-start distPyTorch --numWorker 2")


def test_plugins(platform: RunningPlatform, admin: Client, new_user: Callable[[str], Client]) -> None:
    folder = platform.home / "data" / "plugins" / "shell"
    folder.mkdir(parents=True)
    (folder / "framework.json").write_text('{"name": "shell", "desc": ["Scripts"], "generator": "make"}')
    (folder / "make").write_text('#!/bin/sh\necho \'{"command": ["sh", "main.py"]}\'\n')
    (folder / "make").chmod(0o755)
    path = "/platform/rest/dlmesh/v1/execframeworks"
    with pytest.raises(ApiError) as caught:
        new_user("ann").post(path, {"path": "plugins/shell"})
    assert caught.value.status == 403
    assert admin.post(path, {"path": "plugins/shell"})["name"] == "shell"
    task = finished(admin, "echo from $DLI_EXECID", "--exec-start shell --model-main main.py")
    assert read(admin, f"/execs/{task['id']}/log", logType="outlog") == f"from {task['id']}\n"
    assert admin.request("DELETE", f"{path}/shell").status_code == 204
    with pytest.raises(ApiError) as caught:
        admin.delete(f"{path}/shell")
    assert caught.value.status == 404


DDP = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
# One write: under torchrun both workers have one file.
sys.stdout.write(f"sum {total.item()} of {dist.get_world_size()}\\n")
"""


@pytest.mark.parametrize(
    "arguments",
    [
        "--exec-start distPyTorch --numWorker 2 --model-main main.py",
        "--exec-start distPyTorch --numWorker 2 --user-cmd -- torchrun --nproc-per-node $WMLA_WORKER_NDEVICE main.py",
        "--exec-start PyTorch --user-cmd -- torchrun --standalone --nproc-per-node 2 main.py",
    ],
)
def test_several_workers_of_pytorch(admin: Client, arguments: str) -> None:
    # A process group that nobody destroys aborts now and then as the interpreter goes down (torch 2.13): our runner
    # does not tear it down, torchrun does.
    program = DDP if "torchrun" not in arguments else f"{DDP}dist.destroy_process_group()\n"
    task = finished(admin, program, arguments, seconds=600)
    lines = read(admin, f"/execs/{task['id']}/log", logType="outlog").splitlines()
    assert set(lines) == {"sum 3.0 of 2"}


def test_one_worker_may_be_a_gang_of_one(admin: Client) -> None:
    task = finished(admin, DDP)
    assert read(admin, f"/execs/{task['id']}/log", logType="outlog") == "sum 1.0 of 1\n"


ELASTIC = """
import os, torch
from fabric_model import FabricModel
from torch.utils.data import TensorDataset

def get_datasets():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 3, generator=generator)
    data = TensorDataset(x, (x.sum(1) > 0).long())
    return data, data

net = torch.nn.Linear(3, 2)
fabric = FabricModel(net, get_datasets, torch.nn.functional.cross_entropy, torch.optim.SGD(net.parameters(), 0.1))
if os.environ["DLMESH_JOB_ATTEMPT"] == "1":
    import callbacks
    class Dies(callbacks.Callback):
        def on_epoch_end(self, epoch, save_model):
            if epoch == 3:
                os._exit(9)
    fabric = FabricModel(net, get_datasets, torch.nn.functional.cross_entropy,
                         torch.optim.SGD(net.parameters(), 0.1), user_callback=[Dies()])
print("attempt", os.environ["DLMESH_JOB_ATTEMPT"], "of", os.environ["WORLD_SIZE"], flush=True)
fabric.train(6, 8, 2)
print("done", flush=True)
"""


def test_elastic_pytorch(admin: Client) -> None:
    line = "--exec-start edtPyTorch --edt-options maxWorkers=2 --model-main main.py"
    task = finished(admin, ELASTIC, line, seconds=600)
    output = read(admin, f"/execs/{task['id']}/log", logType="outlog")
    assert "attempt 1 of 2" in output
    assert "attempt 2 of" in output
    assert output.endswith("done\n")
    with zipfile.ZipFile(io.BytesIO(admin.request("GET", f"/execs/{task['id']}/result").content)) as archive:
        names = archive.namelist()
    assert "train/model_epoch_final.pth" in names
    assert not [name for name in names if name.startswith("train/steps")]


STRETCHES = """
import os, time, torch
import callbacks
from fabric_model import FabricModel
from torch.utils.data import TensorDataset

def get_datasets():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 3, generator=generator)
    data = TensorDataset(x, (x.sum(1) > 0).long())
    return data, data

class Slow(callbacks.Callback):
    def on_epoch_begin(self, epoch):
        if os.environ["RANK"] == "0":
            print("epoch", epoch, "of", os.environ["WORLD_SIZE"], flush=True)
    def on_epoch_end(self, epoch, save_model):
        time.sleep(0.1)

net = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
fabric = FabricModel(net, get_datasets, torch.nn.functional.cross_entropy, optimizer, user_callback=[Slow()])
fabric.train(100, 8, 2)
"""


def test_elastic_tasks_give_slots_and_go_on(admin: Client) -> None:
    line = "--exec-start edtPyTorch --edt-options maxWorkers=2 --model-main main.py"
    task = start(admin, STRETCHES, line)
    path = f"/execs/{task['id']}/log"
    admin.until(lambda: "epoch 10 of 2" in read(admin, path, logType="outlog"), seconds=600)
    finished(admin, "print('in between')", seconds=120)
    task = ended(admin, task, seconds=600)
    output = read(admin, path, logType="outlog")
    assert task["state"] == "FINISHED", output
    said = [line.split() for line in output.splitlines() if line.startswith("epoch")]
    assert {size for *_, size in said} >= {"1", "2"}
    # It went on where it was, whatever its size: an epoch may begin again, none is made anew.
    epochs = [int(epoch) for _, epoch, *_ in said]
    assert epochs == sorted(epochs)
    assert set(epochs) == set(range(100))


KERAS = """
import json, os
import tensorflow as tf
config = json.loads(os.environ.get("TF_CONFIG", "{}"))
strategy = tf.distribute.MultiWorkerMirroredStrategy() if config else tf.distribute.get_strategy()
x = tf.random.stateless_normal([64, 4], seed=(1, 2))
y = tf.cast(tf.reduce_sum(x, 1) > 0, tf.int64)
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16, drop_remainder=True)
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
tf.keras.utils.set_random_seed(1)
with strategy.scope():
    model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(2)])
    model.compile(optimizer="sgd", loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(data.with_options(options), epochs=2, verbose=0)
if config.get("task", {}).get("index", 0) == 0:
    model.save(os.path.join(os.environ["RESULT_DIR"], "model", "final.keras"))
print("workers", strategy.num_replicas_in_sync, flush=True)
"""


@pytest.mark.parametrize(
    ("framework", "workers"), [("tensorflow", 1), ("keras", 1), ("disttensorflow --numWorker 2", 2)]
)
def test_tensorflow(admin: Client, framework: str, workers: int) -> None:
    task = finished(admin, KERAS, f"--exec-start {framework} --model-main main.py", seconds=600)
    assert read(admin, f"/execs/{task['id']}/log", logType="outlog").endswith(f"workers {workers}\n")
    with zipfile.ZipFile(io.BytesIO(admin.request("GET", f"/execs/{task['id']}/result").content)) as archive:
        assert archive.namelist() == ["final.keras"]


SERVERS = """
import argparse, json, os
import tensorflow as tf

parser = argparse.ArgumentParser()
for name in ("ps_hosts", "worker_hosts", "job_name", "task_id"):
    parser.add_argument("--" + name)
arguments, _ = parser.parse_known_args()
assert json.loads(os.environ["TF_CONFIG"])["cluster"]["ps"] == [arguments.ps_hosts]
cluster = tf.train.ClusterSpec({"ps": arguments.ps_hosts.split(","), "worker": arguments.worker_hosts.split(",")})
server = tf.distribute.Server(cluster, job_name=arguments.job_name, task_index=int(arguments.task_id))
if arguments.job_name == "ps":
    server.join()
with tf.Graph().as_default():
    with tf.device("/job:ps/task:0"):
        total = tf.compat.v1.get_variable("total", initializer=0.0)
    with tf.compat.v1.Session(server.target) as session:
        session.run(total.initializer)
        print("total", session.run(total.assign_add(3.0)), total.device, flush=True)
"""


def test_parameter_servers_of_tensorflow(admin: Client) -> None:
    line = "--exec-start disttensorflow --numWorker 1 --numPs 1 --model-main main.py"
    task = finished(admin, SERVERS, line, seconds=600)
    assert read(admin, f"/execs/{task['id']}/log", logType="outlog") == "total 3.0 /job:ps/task:0\n"


ELASTIC_KERAS = """
import tensorflow as tf
from fabric_model import FabricModel

def get_datasets():
    x = tf.random.stateless_normal([64, 4], seed=(1, 2))
    y = tf.cast(tf.reduce_sum(x, 1) > 0, tf.int64)
    rows = [(x[i].numpy(), y[i].numpy()) for i in range(64)]
    return rows, rows

model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(2)])
model.compile(optimizer="sgd", loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FabricModel(model, get_datasets, loss, "sgd").train(2, 8, 2)
print("done", flush=True)
"""


@pytest.mark.parametrize("framework", ["edtTensorflow", "edtKeras"])
def test_elastic_tensorflow(admin: Client, framework: str) -> None:
    line = f"--exec-start {framework} --edt-options maxWorkers=2 --model-main main.py"
    task = finished(admin, ELASTIC_KERAS, line, seconds=600)
    assert read(admin, f"/execs/{task['id']}/log", logType="outlog").endswith("done\n")


@pytest.fixture
def published(platform: RunningPlatform) -> Iterator[DeepLearningImpactV1]:
    password = (platform.home / "admin_password").read_text().strip()
    service = DeepLearningImpactV1(authenticator=BasicAuthenticator("Admin", password))
    service.set_service_url(platform.url)
    yield service
    service.http_client.close()


def test_the_published_client(admin: Client, published: DeepLearningImpactV1) -> None:
    # It sends the file without a name and without a content type.
    line = f"{START}  --epochs 3"
    created = published.create_exec(sig_name="local", args=line, file=io.BytesIO(tar_of(main=PROGRAM)))
    assert created.get_status_code() == 201
    task = created.get_result()
    assert (task["args"], task["sigName"]) == (line, "local")
    assert published.get_exec(task["id"]).get_result()["state"] in ("SUBMITTED", "RUNNING", "FINISHED")
    assert ended(admin, task)["state"] == "FINISHED"
    assert task["id"] in [row["id"] for row in published.list_execs().get_result()]
    log = published.get_platform_rest_deeplearning_exec_log(task["id"]).get_result()
    assert json.loads(log)["values"]["loss"]["value"] == "0.25"
    result = published.get_platform_rest_deeplearning_exec_result(task["id"]).get_result()
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(result["trainResult"]))) as archive:
        assert archive.namelist() == ["model_epoch_1.pth"]
    names = [row["name"] for row in published.get_platform_rest_deeplearning_execs_frameworks().get_result()]
    assert "edtPyTorch" in names
    published.post_platform_rest_deeplearning_exec_stop(task["id"])
    with pytest.raises(ApiException) as caught:
        published.create_exec(sig_name="moon", args=START, file=io.BytesIO(b"print(1)"))
    assert caught.value.status_code == 400
    assert published.delete_exec().get_status_code() == 200
    assert published.list_execs().get_result() == []
