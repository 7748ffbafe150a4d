"""Keras trainings: the same steps on any number of workers, stopped and continued by other numbers of them."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[3]

# Moving means would differ between workers if they were not averaged.
PROGRAM = """
import json, os, signal, sys
import keras, numpy as np
from gang import join
from keras_training import KerasTask, Listener, Plan, train

train_dir, stop_at, weights = sys.argv[1], int(sys.argv[2]), sys.argv[3]
gang = join(3, computes=False)
keras.utils.set_random_seed(3 + gang.rank)

@keras.saving.register_keras_serializable("test")
class Watch(keras.layers.Layer):
    def build(self, shape):
        self.mean = self.add_weight(shape=shape[1:], initializer="zeros", trainable=False)

    def call(self, values, training=False):
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(values, 0))
        return values

model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, activation="relu"),
                          keras.layers.LayerNormalization(), Watch(), keras.layers.Dense(3)])
rate = keras.optimizers.schedules.ExponentialDecay(0.05, 10, 0.9)
model.compile(optimizer=keras.optimizers.Adam(rate), metrics=["accuracy"],
              loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
generator = np.random.default_rng(0)
x = generator.normal(size=(250, 6)).astype(np.float32)
data = list(zip(x, x[:, :3].argmax(1)))

class Curve(Listener):
    def trained(self, values, step, epoch):
        if gang.is_first:
            rate = float(model.optimizer.learning_rate)
            print(json.dumps({"step": step, "epoch": epoch, "rate": rate, **values}), flush=True)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def tested(self, values, step, epoch):
        if gang.is_first:
            print(json.dumps({"tested": step, **values}), flush=True)

plan = Plan(epochs=4, batch_size=30, test_interval=20, test_batches=2, seed=1)
train(KerasTask(model, data[:200], data[200:]), gang, train_dir, weights, plan, Curve())
"""


def run(folder: Path, ranks: int, stop_at: int = 0, weights: str = "") -> list[dict[str, Any]]:
    """What the first worker printed as JSON; all end with 143 if they were stopped, else with 0."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    packages = ["libs/sdk", "libs/recordkit", "libs/workerkit", "libs/servicekit", "libs/contracts"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DLMESH_")} | {
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY / package) for package in packages),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, str(program), str(folder / "checkpoints"), str(stop_at), weights]
    started = [
        subprocess.Popen(
            command, env=environment | {"RANK": str(rank)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    expected = 143 if stop_at else 0
    assert [process.returncode for process in started] == [expected] * ranks, "\n".join(outputs)
    return [json.loads(line) for line in outputs[0].splitlines() if line.startswith("{")]


def final_weights(folder: Path) -> list[np.ndarray]:
    """Arrays of the last weights; seven: two dense layers, scale and centre, a moving mean."""
    import h5py

    weights: list[np.ndarray] = []
    with zipfile.ZipFile(folder / "checkpoints" / "model_epoch_final.keras") as archive:
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
            file.visititems(lambda _, item: weights.append(item[()]) if isinstance(item, h5py.Dataset) else None)
    assert len(weights) == 7
    return weights


def steps(*parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for part in parts for line in part if "step" in line]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder and the output of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("calm")
    return folder, run(folder, 1)


def test_a_gang_that_changes_trains_the_same_curve(tmp_path: Path, calm: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (calm_folder, output) = tmp_path, calm
    parts = [run(folder, 1, stop_at=5), run(folder, 2, stop_at=16), run(folder, 1)]
    curve = steps(*parts)
    # 200 samples in batches of 30 are 7 steps an epoch; nothing was taken twice, nothing left out.
    assert [line["step"] for line in curve] == list(range(1, 29))
    assert [len(steps(part)) for part in parts] == [5, 11, 12]
    for mine, other in zip(curve, steps(output), strict=True):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-4)
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    tests = [[line for line in lines if "tested" in line] for lines in (output, parts[2])]
    assert [line["tested"] for line in tests[0]] == [20, 28]
    assert tests[1] == [pytest.approx(line, rel=1e-3, abs=1e-4) for line in tests[0]]
    for mine, other in zip(final_weights(folder), final_weights(calm_folder), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-2, atol=1e-3)
    files = sorted(path.name for path in (folder / "checkpoints").glob("*.keras"))
    assert files == [*(f"model_epoch_{epoch}.keras" for epoch in range(1, 5)), "model_epoch_final.keras"]


def test_given_weights_are_the_beginning(tmp_path: Path, calm: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, output = calm
    first = steps(output)[0]
    second = steps(run(tmp_path, 1, weights=str(folder / "checkpoints")))[0]
    assert second["loss"] < 0.5 * first["loss"]
    # The optimizer begins anew.
    assert (second["step"], second["rate"]) == (1, first["rate"])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    import keras
    from keras_training import load_weights

    def model(width: int) -> Any:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(width)])

    model(3).save(tmp_path / "model_epoch_final.keras")
    with pytest.raises(ValueError, match=r"model_epoch_final.keras does not fit this model"):
        load_weights(model(2), tmp_path)
    (tmp_path / "model_epoch_final.keras").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="does not fit"):
        load_weights(model(3), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no .keras or .h5 file"):
        load_weights(model(3), tmp_path / "none")
