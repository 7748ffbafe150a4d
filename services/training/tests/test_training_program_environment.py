"""What programs of the original platform find in their environment."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from training_service.domain.specs import TrainingSpec, ValidationSpec
from training_service.worker import run_training, run_validation

# Every documented variable; None where there is nothing to say. {run} is the run's folder.
DOCUMENTED = {
    "DATA_DIR": "/data/digits",
    "DATA_PATH": "/data/digits",
    "DLI_DATA_FS": "/data/digits",
    "DLI_CS_DATASTORE_META": "type=fs,data_path=.",
    "RESULT_DIR": "{run}",
    "LOG_DIR": "{run}/log",
    "JOB_STATE_DIR": "{run}",
    "DLI_RESULT_FS": "{run}",
    "DLI_SHARED_FS": "{run}",
    "DLI_WORK_DIR": "{run}",
    "TRAINING_ID": "uid-1",
    "DLI_EXECID": "job-7",
    "DLI_IS_ELASTIC": "false",
    "DLI_LOGGER_LEVEL": "info",
    "FABRIC_HOME": "{run}/fabric",
    "DLI_FABRIC_HOME": "{run}/fabric",
    "FABRIC_BACKEND": "pytorch",
    "FRAME_WORK": "PyTorch",
    "MODEL_PATH": "{run}/code",
    "RESUME_WEIGHT_PATH": "/w/start.pth",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "4321",
    "WORLD_SIZE": "3",
    "RANK": "2",
    "NODE_RANK": "0",
    "WMLA_NWORKER": "3",
    "WMLA_WORKER_NDEVICE": "1",
    # Trials of a tuning have one.
    "SUBID": None,
    # Of the original's own engine, of its conda, and a file of its parameter servers.
    "DLI_ELASTIC_PROFILE": None,
    "DLI_ELASTIC_CONF_DIR": None,
    "DLI_EXTRA_CONF": None,
    "DLI_CONDA_HOME": None,
    "DLI_CONDA_ENV_NAME": None,
    "PS_PATH": None,
}
# What the engine gives a rank of three.
GANG = {"RANK": "2", "LOCAL_RANK": "2", "NODE_RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
ENGINE = GANG | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4321", "DLMESH_JOB_ID": "job-7"}


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*DOCUMENTED, *ENGINE]:
        monkeypatch.delenv(name, raising=False)
    for name, value in ENGINE.items():
        monkeypatch.setenv(name, value)


def spec_of(run: Path, **fields: Any) -> TrainingSpec:
    known = {"code": str(run / "code"), "train_dir": str(run / "checkpoints"), "weights": "/w/start.pth"}
    return TrainingSpec(**{**known, "data": {"train": "/data/digits/train"}, **fields})


def test_every_documented_variable(tmp_path: Path) -> None:
    run = tmp_path / "uid-1"
    found = os.environ | run_training.run_environment(spec_of(run), run)
    expected = {name: value and value.format(run=run) for name, value in DOCUMENTED.items()}
    assert {name: found.get(name) for name in DOCUMENTED} == expected
    with zipfile.ZipFile(run / "fabric" / "libs" / "fabric.zip") as archive:
        assert "fabric_model.py" in archive.namelist()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_workers": 4, "weights": ""}, {"DLI_IS_ELASTIC": "true", "RESUME_WEIGHT_PATH": None}),
        ({"framework": "TensorFlow"}, {"FABRIC_BACKEND": "tensorflow", "FRAME_WORK": "TensorFlow"}),
        ({"framework": "Caffe"}, {"FABRIC_BACKEND": None, "FRAME_WORK": "Caffe"}),
    ],
)
def test_what_depends_on_the_training(tmp_path: Path, fields: dict[str, Any], expected: dict[str, str | None]) -> None:
    found = run_training.run_environment(spec_of(tmp_path, **fields), tmp_path)
    assert {name: found.get(name) for name in expected} == expected


def test_inference_programs_find_the_same(tmp_path: Path) -> None:
    spec = ValidationSpec(
        code="/t/code",
        model="/t/checkpoints",
        input_dir="/data/digits/test",
        output_dir=str(tmp_path / "output"),
        label_file="",
        threshold=0.0,
        metrics=[],
    )
    found = run_validation.run_environment(spec)
    assert found["RESULT_DIR"] == str(tmp_path / "output")
    assert (found["DATA_DIR"], found["FABRIC_HOME"]) == ("/data/digits", str(tmp_path / "fabric"))


def test_a_single_rank_is_a_gang_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*GANG, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name)
    found = run_training.run_environment(spec_of(tmp_path), tmp_path)
    program = "import torch.distributed as d; d.init_process_group('gloo'); print(d.get_rank(), d.get_world_size())"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | found, text=True, capture_output=True, check=True
    )
    assert done.stdout == "0 1\n"
