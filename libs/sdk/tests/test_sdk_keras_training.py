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
import dlmesh_sdk.monitor
from dlmesh_sdk.gang import join
from dlmesh_sdk.keras_training import KerasTask, Listener, Plan, train

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

# Not compiled, with names instead of objects, and loggers of both published forms.
FABRIC_PROGRAM = """
import json, os, signal, sys
import keras, numpy as np
import dlmesh_sdk.monitor
from callbacks import Callback
from fabric_model import FabricModel

dlmesh_sdk.monitor.PRINT_SECONDS = 0.0

os.environ["DLMESH_TRAIN_DIR"], stop_at = sys.argv[1], int(sys.argv[2])

class Driver:
    def log_train_metrics(self, loss, acc, completed_batch, worker=0):
        print(json.dumps({"driver": completed_batch, "worker": worker, "loss": loss, "percent": acc}), flush=True)

    def log_test_metrics(self, loss, acc, completed_batch, worker=0):
        print(json.dumps({"tested": completed_batch, "loss": loss, "percent": acc}), flush=True)

class Epochs(Callback):
    ended = 0

    def state_dict(self):
        return {"ended": self.ended}

    def load_state_dict(self, state):
        self.ended = state["ended"]

    def on_epoch_end(self, epoch, save_model):
        self.ended += 1
        if epoch % 2:
            save_model()

    def on_train_end(self):
        print(json.dumps({"ended": self.ended, "of": self.params["epochs"]}), flush=True)

class Worker:
    def log_train_metrics(self, metrics, iteration, epoch, workers):
        print(json.dumps({"step": iteration, "epoch": epoch, "workers": workers, **metrics}), flush=True)
        if iteration == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

def datasets():
    x = np.random.default_rng(0).normal(size=(250, 6)).astype(np.float32)
    y = np.eye(3)[x[:, :3].argmax(1)]
    return list(zip(x[:200], y[:200])), (x[200:], y[200:])

keras.utils.set_random_seed(3)
model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, activation="relu"),
                          keras.layers.Dense(3, activation="softmax")])
FabricModel(model, datasets, "categorical_crossentropy", "adam", driver_logger=Driver(), user_callback=[Epochs],
            worker_logger_callback=Worker(), enable_onnx=True).train(4, 30, checkpoint_freq=0, effective_batch_size=30)
"""


def run(folder: Path, ranks: int, stop_at: int = 0, weights: str = "", content: str = PROGRAM) -> list[dict[str, Any]]:
    """What the first worker printed as JSON; all end with 143 if they were stopped, else with 0."""
    program = folder / "program.py"
    program.write_text(content)
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
        outputs = [process.communicate(timeout=600)[0] for process in started]
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


def test_what_one_worker_wants_ends_all(tmp_path: Path) -> None:
    early = """
class Early(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if gang.rank == 1 and batch == 4:
            self.model.stop_training = True

plan = Plan("""
    content = PROGRAM.replace("\nplan = Plan(", early).replace("data[200:])", "data[200:], callbacks=[Early()])")
    output = run(tmp_path, 2, content=content)
    assert [line["step"] for line in output if "step" in line] == [1, 2, 3, 4, 5]
    assert [line["tested"] for line in output if "tested" in line] == [5]


def test_an_elastic_keras_program_goes_on_where_it_was(tmp_path: Path) -> None:
    for name in ("calm", "changing"):
        (tmp_path / name).mkdir()
    calm = run(tmp_path / "calm", 1, content=FABRIC_PROGRAM)
    folder = tmp_path / "changing"
    parts = [
        run(folder, ranks, stop_at=stop_at, content=FABRIC_PROGRAM) for ranks, stop_at in ((1, 6), (2, 17), (1, 0))
    ]
    curve = steps(*parts)
    assert [line["step"] for line in curve] == list(range(1, 29))
    assert [line["workers"] for line in curve] == [1] * 6 + [2] * 11 + [1] * 11
    losses, expected = ([line["loss"] for line in lines] for lines in (curve, steps(calm)))
    assert losses == pytest.approx(expected, rel=1e-3)
    assert losses[-1] < 0.8 * losses[0]
    driver = [line for part in parts for line in part if "driver" in line]
    assert [line["percent"] for line in driver] == pytest.approx([100 * line["accuracy"] for line in curve])
    # Once each epoch of 7 steps, the last time at the end.
    assert [line["tested"] for part in parts for line in part if "tested" in line] == [7, 14, 21, 28]
    assert parts[-1][-1] == {"ended": 4, "of": 4}
    files = sorted(path.name for path in (folder / "checkpoints").glob("*.keras"))
    assert files == ["model_epoch_2.keras", "model_epoch_4.keras", "model_epoch_final.keras"]


def test_a_batch_beyond_the_samples_is_all_of_them(tmp_path: Path) -> None:
    program = PROGRAM.replace("epochs=4, batch_size=30", "epochs=6, batch_size=2**31 - 1")
    for name in ("calm", "changing"):
        (tmp_path / name).mkdir()
    calm = steps(run(tmp_path / "calm", 1, content=program))
    parts = [run(tmp_path / "changing", ranks, stop_at=stop_at, content=program) for ranks, stop_at in ((3, 2), (1, 0))]
    curve = steps(*parts)
    assert [(line["step"], line["epoch"]) for line in curve] == [(number, number) for number in range(1, 7)]
    assert [line["loss"] for line in curve] == pytest.approx([line["loss"] for line in calm], rel=1e-3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_dropout_goes_on_as_it_was_and_differs_between_workers() -> None:
    import keras
    import torch
    from dlmesh_sdk.gang import Gang
    from dlmesh_sdk.keras_training import _Engine

    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)

    def engine(rank: int) -> Any:
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16), keras.layers.Dropout(0.5)])
        model.compile("sgd", "mse")
        made = _Engine(model, (x[:1], x[:1, :1]), Gang(rank, 0, 1, torch.device("cpu")))
        made.vary()
        return made

    def losses(of: Any) -> list[float]:
        return [of.train_step(x, x[:, :1], 1.0)["loss"] for _ in range(3)]

    first = engine(0)
    losses(first)
    kept = [variable.numpy().copy() for variable in first._state()]
    expected = losses(first)
    for variable, value in zip(first._state(), kept, strict=True):
        variable.assign(value)
    assert losses(first) == expected
    assert losses(engine(0)) != losses(engine(1))


def test_samples_of_every_kind_of_data() -> None:
    import keras
    import tensorflow as tf
    from dlmesh_sdk.fabric_keras import as_samples

    x, y = np.arange(20.0).reshape(10, 2), np.arange(10)

    class Flow(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            part = slice(index * 3, index * 3 + 3)
            return x[part], y[part]

    for data in ((x, y), Flow(), list(zip(x, y, strict=True))):
        samples = as_samples(data)
        assert len(samples) == 10
        assert [int(samples[index][1]) for index in (9, 0, 4)] == [9, 0, 4]
        np.testing.assert_array_equal(samples[9][0], x[9])
    with pytest.raises(TypeError, match="has no samples by index"):
        as_samples(tf.data.Dataset.from_tensor_slices((x, y)))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_what_keras_models_take_no_part_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras
    from dlmesh_sdk.fabric_keras import KerasFabric
    from dlmesh_sdk.fabric_options import FabricOptions

    def model() -> Any:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])

    def no_data() -> Any:
        raise AssertionError

    with pytest.raises(ValueError, match="optimizer: None is not enough"):
        KerasFabric(FabricOptions(model(), no_data, "mse"))
    with pytest.raises(ValueError, match=r"fn_test: .* is for PyTorch"):
        KerasFabric(FabricOptions(model(), no_data, "mse", "sgd", test_function=no_data))
    one_metric = FabricOptions(model(), no_data, "mse", "sgd", metrics="mae")
    KerasFabric(one_metric)
    assert {*one_metric.model.evaluate(np.ones((2, 4)), np.ones((2, 2)), verbose=0, return_dict=True)} == {
        "loss",
        "mae",
    }
    monkeypatch.setenv("DLMESH_SYNC_MODE", "ASYNC")
    with pytest.raises(ValueError, match="syncMode: 'ASYNC'"):
        KerasFabric(FabricOptions(model(), no_data, "mse", "sgd"))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    import keras
    from dlmesh_sdk.keras_training import load_weights
    from dlmesh_sdk.wrong_data import UnusableError

    def model(width: int) -> Any:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(width)])

    model(3).save(tmp_path / "model_epoch_final.keras")
    with pytest.raises(ValueError, match=r"model_epoch_final.keras does not fit this model"):
        load_weights(model(2), tmp_path)
    (tmp_path / "model_epoch_final.keras").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="does not fit"):
        load_weights(model(3), tmp_path)
    with pytest.raises(UnusableError, match=r"no .keras or .h5 file"):
        load_weights(model(3), tmp_path / "none")
