"""What runs inside a job."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from sklearn.datasets import load_digits
from training_service.domain.specs import TrainingSpec, ValidationSpec

REPOSITORY = Path(__file__).parents[3]
TEMPLATE = REPOSITORY / "services/models/models_service/builtin/pytorch-image-classification"


def varint(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as an imported dataset."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    for split, indices in zip(("train", "val", "test"), np.split(order, [1200, 1500]), strict=True):
        (folder / split).mkdir()
        with lmdb.open(str(folder / split), map_size=1 << 26) as environment, environment.begin(write=True) as writer:
            for number, index in enumerate(indices):
                pixels = (data.images[index] * 15.9).astype(np.uint8).tobytes()
                record = b"\x08\x01\x10\x08\x18\x08\x22" + varint(len(pixels)) + pixels
                writer.put(b"%08d_%d.png" % (number, index), record + b"\x28" + varint(int(data.target[index])))
    (folder / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    return folder


def environment(**more: str) -> dict[str, str]:
    packages = ["libs/sdk", "libs/workerkit", "libs/servicekit", "libs/contracts", "services/training"]
    paths = [str(REPOSITORY / package) for package in packages]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"} | more


def training_spec(tmp_path: Path, digits: Path, **hyperparameter: Any) -> Path:
    file = tmp_path / "spec.json"
    TrainingSpec(
        code=str(TEMPLATE),
        train_dir=str(tmp_path / "checkpoints"),
        weights="",
        data={split: str(digits / split) for split in ("train", "val", "test")},
        parameters={
            "batch_size": 64,
            "test_interval": 30,
            "test_iteration": 1,
            "hyperparameter": {"solvertype": "Adam", "learningrate": 0.003, "epoch": 4, **hyperparameter},
        },
    ).write(file)
    return file


def start(spec: Path, ranks: int) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launcher, "-m", "training_service.worker.run_training", str(spec)]
    return subprocess.Popen(
        command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def run(module: str, spec: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"training_service.worker.{module}", str(spec)]
    return subprocess.run(command, env=environment(**more), text=True, capture_output=True, timeout=600, check=False)


@pytest.mark.slow
def test_two_ranks_learn_digits_and_validation_measures_it(tmp_path: Path, digits: Path) -> None:
    trainer = start(training_spec(tmp_path, digits), ranks=2)
    output, _ = trainer.communicate(timeout=600)
    assert trainer.returncode == 0, output
    assert "Total iterations: 76" in output
    assert "Iteration 76: tag test_accuracy, simple_value" in output
    # Every `test_interval` iterations, and at the end.
    assert re.findall(r"Iteration (\d+): tag test_loss", output) == ["30", "60", "76"]
    # One batch of 64 on the way, all 297 samples at the end.
    shares = [float(share) for share in re.findall(r"tag test_accuracy, simple_value ([\d.]+)", output)]
    samples = [64, 64, 297]
    assert [round(share * n) for share, n in zip(shares, samples, strict=True)] == pytest.approx(
        [share * n for share, n in zip(shares, samples, strict=True)], abs=0.01
    )
    files = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert files >= {"model_epoch_1.pth", "model_epoch_4.pth", "model_epoch_final.pth", "serving.json"}

    spec = tmp_path / "validation.json"
    ValidationSpec(
        code=str(TEMPLATE),
        model=str(tmp_path / "checkpoints"),
        input_dir=str(digits / "test"),
        output_dir=str(tmp_path / "output"),
        label_file=str(digits / "labels.txt"),
        threshold=0.0,
        metrics=["Top1", "Top5", "ConfusionMatrix"],
    ).write(spec)
    folder = tmp_path / "job"
    folder.mkdir()
    job = {"DLMESH_JOB_ID": "j1", "DLMESH_JOB_ATTEMPT": "1", "DLMESH_JOB_TOKEN": "t", "DLMESH_JOB_DIR": str(folder)}
    done = run("run_validation", spec, DLMESH_SCHEDULING_ADDRESS="127.0.0.1:1", **job)
    assert done.returncode == 0, done.stderr
    result = json.loads(next(folder.glob("**/report.json")).read_text())["result"]
    values = {pair["name"]: pair["value"] for pair in result["pairs"]}
    assert float(values["Top1"]) >= 0.95
    assert float(values["Top5"]) >= float(values["Top1"])
    assert sum(map(sum, json.loads(values["ConfusionMatrix"])["matrix"])) == 297


@pytest.mark.slow
def test_asked_to_stop_it_leaves_a_checkpoint_and_goes_on_from_it(tmp_path: Path, digits: Path) -> None:
    spec = training_spec(tmp_path, digits, epoch=400)
    command = [sys.executable, "-m", "training_service.worker.run_training", str(spec)]
    with subprocess.Popen(
        command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as trainer:
        assert trainer.stdout is not None
        for line in trainer.stdout:
            if line.startswith("Iteration") and int(line.split()[1].rstrip(":")) > 20:
                break
        trainer.send_signal(signal.SIGTERM)
        rest = trainer.stdout.read()
    assert trainer.returncode == 143
    stopped_at = int(rest.split("Stopped after iteration ")[1].split()[0])
    checkpoints = [path.name for path in (tmp_path / "checkpoints" / "steps").iterdir()]
    # The one of the stop is the newest; retention (two) may have left the one of the epoch before it.
    assert max(checkpoints) == f"step-{stopped_at:010d}"
    assert len(checkpoints) <= 2
    assert not (tmp_path / "checkpoints" / "model_epoch_final.pth").exists()

    # As many epochs as are done already, and one more.
    epochs = stopped_at // 19 + 1
    again = run("run_training", training_spec(tmp_path, digits, epoch=epochs))
    assert again.returncode == 0, again.stderr
    assert f"Iteration {stopped_at + 1}: tag train_loss" in again.stdout
    assert "Iteration 1: " not in again.stdout
    assert (tmp_path / "checkpoints" / "model_epoch_final.pth").is_file()


def test_a_program_without_final_weights_has_failed(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "main.py").write_text("import pth_parameter_mgr; print(pth_parameter_mgr.getEpoch())")
    spec = tmp_path / "spec.json"
    parameters = {"hyperparameter": {"epoch": 7}}
    TrainingSpec(str(tmp_path / "code"), str(tmp_path / "checkpoints"), "", {"train": "/d/train"}, parameters).write(
        spec
    )
    done = run("run_training", spec)
    assert (done.returncode, done.stdout) == (1, "7\n")
    assert "main.py ended with code 0 but wrote no weights" in done.stderr


@pytest.mark.parametrize(("program", "code", "message"), [(None, 1, "no main.py"), ("raise SystemExit(3)", 3, "")])
def test_how_a_program_ends_is_how_the_worker_ends(
    tmp_path: Path, program: str | None, code: int, message: str
) -> None:
    (tmp_path / "code").mkdir()
    if program:
        (tmp_path / "code" / "main.py").write_text(program)
    spec = tmp_path / "spec.json"
    TrainingSpec(str(tmp_path / "code"), str(tmp_path / "checkpoints"), "", {"train": "/d/train"}, {}).write(spec)
    done = run("run_training", spec)
    assert done.returncode == code
    assert message in done.stderr


def test_the_control_plane_imports_no_torch() -> None:
    modules = "training_service.usecases.reconcile, training_service.storage.workspace, training_service.domain.specs"
    check = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], env=environment(), check=False).returncode == 0
