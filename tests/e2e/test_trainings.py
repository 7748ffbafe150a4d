"""Trainings over REST: what can be asked of one, how programs fail, what a kill costs."""

from __future__ import annotations

import functools
import http.server
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform
from dlmesh_platform.main_job import MainJob
from testkit.platform import attempts_of, ranks_of

pytestmark = [pytest.mark.platform, pytest.mark.slow]

TEMPLATE = "pytorch-image-classification"


def make_model(admin: Client, name: str, program: str = "", **fields: Any) -> str:
    """A model over the shared dataset, with `program` as its main.py; the path of its trainings."""
    body = {"name": name, "templatename": TEMPLATE, "dataset": "shared", "sig": "local", "accelerator": "Native"}
    epochs = {"solvertype": "Adam", "learningrate": 0.002, "lrpolicy": "fixed", "epoch": 2}
    admin.post(
        "/models", {**body, "hyperparameter": epochs, **({"tfmainContent": program} if program else {}), **fields}
    )
    return f"/models/{name}/trainings"


def start(admin: Client, trainings: str, name: str = "t", **fields: Any) -> None:
    admin.post(trainings, {"trainName": name, "dlFramework": "PyTorch", "clusterSize": 1, **fields})


def detail_of(admin: Client, trainings: str, name: str = "t") -> dict[str, Any]:
    detail: dict[str, Any] = admin.get(f"{trainings}/{name}")["trainingParameters"]
    return detail


def ended(admin: Client, trainings: str, name: str = "t", seconds: float = 90) -> dict[str, Any]:
    """The training once it has a final status."""

    def is_final() -> bool:
        return detail_of(admin, trainings, name)["status"] in ("FINISHED", "FAILED", "STOPPED")

    admin.until(is_final, seconds=seconds)
    return detail_of(admin, trainings, name)


def test_weights_are_downloaded_whole(admin: Client, trained: MainJob) -> None:
    path = f"{trained.model_path}/trainings/first/weightfile"
    assert admin.get(path) == "model_epoch_final.pth"
    folder = Path(trained.training()["path"])
    answer = admin.request("GET", f"{path}/download")
    assert answer.content == (folder / "model_epoch_final.pth").read_bytes()
    assert answer.headers["Content-Type"] == "application/octet-stream"
    size = (folder / "model_epoch_final.pth").stat().st_size
    assert answer.headers["Content-Disposition"] == f'attachment; filename="model_epoch_final.pth"; size={size}'
    one = admin.request("GET", f"{path}/download", params={"file": "model_epoch_1.pth"})
    assert one.content == (folder / "model_epoch_1.pth").read_bytes()
    for file, status in (("../spec.json", 400), ("none.pth", 404), ("steps", 400)):
        answer = admin._session.get(
            f"{admin.url}/platform/rest/deeplearning/v1{path}/download", params={"file": file}, timeout=30
        )
        assert answer.status_code == status, (file, answer.text)
        assert file in answer.json()["message"]


def test_a_command_with_torchrun_trains_with_deepspeed(admin: Client, trained: MainJob) -> None:
    program = """
import os, sys
import torch
from dlmesh_sdk import deepspeed_on_cpu

deepspeed_on_cpu.install()
import deepspeed

deepspeed.init_distributed("gloo")
model = torch.nn.Linear(4, 1)
config = {"train_batch_size": 4, "optimizer": {"type": "Adam", "params": {"lr": 0.1, "torch_adam": True}},
          "zero_optimization": {"stage": 1}}
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
for step in range(3):
    loss = engine(torch.ones(2, 4)).pow(2).mean()
    engine.backward(loss)
    engine.step()
if int(os.environ["RANK"]) == 0:
    assert os.environ["WORLD_SIZE"] == "2"
    torch.save(engine.module.state_dict(), os.environ["DLMESH_TRAIN_DIR"] + "/mine.pt")
    print("args", sys.argv[1:])
torch.distributed.destroy_process_group()
"""
    trainings = make_model(admin, "commanded", program)
    command = "torchrun --standalone --nproc-per-node 2 main.py --epochs 3 'two words'"
    start(admin, trainings, clusterSize=2, cmd=command)
    training = ended(admin, trainings)
    assert training["status"] == "FINISHED", training["statusMessage"]
    assert training["cmd"] == command
    assert admin.get(f"{trainings}/t/weightfile") == "mine.pt"


def test_weights_from_an_address(admin: Client, trained: MainJob, tmp_path: Path) -> None:
    weights = admin.request("GET", f"{trained.model_path}/trainings/first/weightfile/download").content
    (tmp_path / "start.pth").write_bytes(weights)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        epochs = {"solvertype": "Adam", "learningrate": 1e-6, "lrpolicy": "fixed", "epoch": 1}
        trainings = make_model(admin, "addressed", hyperparameter=epochs)
        start(admin, trainings, wtURL=f"{address}/start.pth")
        start(admin, trainings, "none", wtURL=f"{address}/none.pth")
        training, refused = ended(admin, trainings), ended(admin, trainings, "none")
        server.shutdown()
    assert training["status"] == "FINISHED", training["statusMessage"]
    assert training["wtURL"] == f"{address}/start.pth"
    assert refused["status"] == "FAILED"
    assert f"{address}/none.pth answered 404" in refused["statusMessage"]
    # A rate of almost nothing: what it knows it was given.
    log = (Path(training["path"]).parents[2] / "jobs" / training["appid"] / "attempt-1" / "rank-0.out").read_text()
    accuracy = [line for line in log.splitlines() if "tag test_accuracy" in line][-1]
    assert float(accuracy.rsplit(" ", 1)[1]) > 0.95


def test_checkpoints_by_steps_are_kept_and_a_stop_is_quick(admin: Client, trained: MainJob) -> None:
    endless = {"solvertype": "Adam", "learningrate": 0.001, "lrpolicy": "fixed", "epoch": 100000}
    trainings = make_model(admin, "stepping", hyperparameter=endless)
    start(admin, trainings, checkpointInterval=5, checkpointsKept=3)
    detail = detail_of(admin, trainings)
    assert (detail["checkpointInterval"], detail["checkpointsKept"], detail["maxRestarts"]) == (5, 3, 2)
    steps = Path(detail["path"]) / "steps"
    admin.until(lambda: steps.is_dir() and len(list(steps.glob("step-*/manifest.json"))) >= 3, seconds=60)
    asked = time.monotonic()
    admin.put(f"{trainings}/t/stop")
    training = ended(admin, trainings, seconds=20)
    assert training["status"] == "STOPPED"
    assert time.monotonic() - asked < 10
    kept = sorted(path.name for path in steps.iterdir())
    assert len(kept) == 3
    assert all(int(name.removeprefix("step-")) % 5 == 0 for name in kept[:-1])
    assert training["progress"] < 100


@pytest.mark.parametrize(
    ("name", "program", "reason"),
    [
        ("raises", "raise RuntimeError('broken on purpose')", "broken on purpose"),
        ("nothing", "print('I am done')", "wrote no weights"),
        ("exits", "import sys; print('last words', file=sys.stderr); sys.exit(3)", "last words"),
        ("aborts", "import os, signal; os.kill(os.getpid(), signal.SIGABRT)", "SIGABRT"),
    ],
)
def test_a_program_that_fails_says_why(admin: Client, trained: MainJob, name: str, program: str, reason: str) -> None:
    trainings = make_model(admin, f"bad-{name}", program)
    start(admin, trainings, maxRestarts=0)
    training = ended(admin, trainings)
    assert (training["status"], training["maxRestarts"]) == ("FAILED", 0)
    assert reason in training["statusMessage"]


def test_a_program_that_hangs_is_ended(admin: Client, trained: MainJob) -> None:
    hangs = make_model(admin, "bad-hangs", "import time; time.sleep(10**6)")
    start(admin, hangs, maxRestarts=0, maxSilentSeconds=3)
    training = ended(admin, hangs)
    assert training["status"] == "FAILED"
    assert "no sign of life for 3 s" in training["statusMessage"]


def test_a_training_runs_no_longer_than_it_may(admin: Client, trained: MainJob) -> None:
    endless = make_model(admin, "bad-endless", "import time; time.sleep(10**6)")
    start(admin, endless, maxRestarts=0, maxSeconds=1, priority=5)
    training = ended(admin, endless)
    assert (training["status"], training["maxSeconds"], training["priority"]) == ("FAILED", 1, 5)
    assert "longer than the allowed 1 seconds" in training["statusMessage"]


def test_children_of_a_program_go_with_it(admin: Client, trained: MainJob, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = f"""
import os, subprocess, sys
for _ in range(20):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    open({str(pids)!r}, "a").write(f"{{child.pid}}\\n")
raise RuntimeError("left twenty behind")
"""
    trainings = make_model(admin, "bad-forks", program)
    start(admin, trainings, maxRestarts=0)
    assert "left twenty behind" in ended(admin, trainings)["statusMessage"]
    left = [int(pid) for pid in pids.read_text().split()]
    assert len(left) == 20
    admin.until(lambda: not any(psutil.pid_exists(pid) for pid in left), seconds=10)


def test_a_killed_rank_costs_no_more_than_the_steps_since_its_checkpoint(
    platform: RunningPlatform, admin: Client, trained: MainJob
) -> None:
    hyperparameter = {"solvertype": "Adam", "learningrate": 0.002, "lrpolicy": "fixed", "epoch": 12}
    curves = {}
    trainings = make_model(admin, "killed", hyperparameter=hyperparameter)
    for name in ("calm", "killed"):
        start(admin, trainings, name, clusterSize=2, checkpointInterval=20)
        if name == "killed":
            admin.until(lambda: (detail_of(admin, trainings, "killed").get("progress") or 0) >= 25, seconds=60)
            os.kill(ranks_of(platform, detail_of(admin, trainings, "killed"))[-1].pid, signal.SIGKILL)
        training = ended(admin, trainings, name, seconds=240)
        assert training["status"] == "FINISHED", training["statusMessage"]
        curves[name] = [(attempt / "rank-0.out").read_text() for attempt in attempts_of(platform, training)]
    assert (len(curves["calm"]), len(curves["killed"])) == (1, 2)
    # The second attempt went on behind a checkpoint, and ended where the undisturbed one did.
    assert "Iteration 1: " not in curves["killed"][1]
    last = {
        name: [line for line in logs[-1].splitlines() if "tag test_loss" in line][-1] for name, logs in curves.items()
    }
    assert last["calm"].split(":")[0] == last["killed"].split(":")[0]
    losses = {name: float(line.rsplit(" ", 1)[1]) for name, line in last.items()}
    assert losses["killed"] == pytest.approx(losses["calm"], rel=1e-3)
