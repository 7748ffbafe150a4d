"""TensorFlow programs of the old platform's kind, run as the platform runs them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from recordkit.tfrecord import frame
from training_service.domain.specs import TrainingSpec
from training_service.frameworks.registry import framework_named
from workerkit.tensorflow_cluster import roles, server_arguments

REPOSITORY = Path(__file__).parents[3]

# Written from the documented interface alone.
KERAS_PROGRAM = """
import argparse, json, os
import monitor_tf
import tensorflow as tf
import tf_parameter_mgr

parser = argparse.ArgumentParser()
parser.add_argument("--train_dir")
parser.add_argument("--weights")
arguments, _ = parser.parse_known_args()

def parse(record):
    row = tf.io.parse_single_example(
        record, {"x": tf.io.FixedLenFeature([4], tf.float32), "y": tf.io.FixedLenFeature([], tf.int64)})
    return row["x"], row["y"]

def read(files, size):
    data = tf.data.TFRecordDataset(files).map(parse).batch(size, drop_remainder=True)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.with_options(options)

config = json.loads(os.environ.get("TF_CONFIG", "{}"))
strategy = tf.distribute.MultiWorkerMirroredStrategy() if config else tf.distribute.get_strategy()
train = read(tf_parameter_mgr.getTrainData(), tf_parameter_mgr.getTrainBatchSize())
test = read(tf_parameter_mgr.getTestData(), tf_parameter_mgr.getTestBatchSize())
tf.keras.utils.set_random_seed(1)
with strategy.scope():
    model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(2)])
    model.compile(optimizer="sgd", metrics=["accuracy"],
                  loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(train, epochs=tf_parameter_mgr.getEpoch(), verbose=0,
          callbacks=[monitor_tf.TFKerasMonitorCallback(test)])
if config.get("task", {}).get("index", 0) == 0:
    model.save(os.path.join(arguments.train_dir, "model_epoch_final.keras"))
print("weights", [float(value) for array in model.get_weights() for value in array.flatten()], flush=True)
"""

SERVER_PROGRAM = """
import argparse, json, os
import tensorflow as tf

parser = argparse.ArgumentParser()
for name in ("train_dir", "ps_hosts", "worker_hosts", "job_name", "task_id"):
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
    saver = tf.compat.v1.train.Saver()
    with tf.compat.v1.Session(server.target) as session:
        session.run(total.initializer)
        print("total", session.run(total.assign_add(3.0)), total.device, flush=True)
        saver.save(session, os.path.join(arguments.train_dir, "model.ckpt"), global_step=1)
"""

COORDINATOR_PROGRAM = """
import argparse, os
import tensorflow as tf
import tf_parameter_mgr

parser = argparse.ArgumentParser()
parser.add_argument("--train_dir")
arguments, _ = parser.parse_known_args()
resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
if resolver.task_type in ("worker", "ps"):
    server = tf.distribute.Server(resolver.cluster_spec(), job_name=resolver.task_type,
                                  task_index=resolver.task_id, protocol="grpc", start=True)
    server.join()
strategy = tf.distribute.ParameterServerStrategy(resolver)
coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
with strategy.scope():
    weight = tf.Variable(tf.zeros([4]))
print("device", weight.device)

def data():
    def parse(record):
        row = tf.io.parse_single_example(
            record, {"x": tf.io.FixedLenFeature([4], tf.float32), "y": tf.io.FixedLenFeature([], tf.int64)})
        return row["x"], tf.cast(row["y"], tf.float32)
    return tf.data.TFRecordDataset(tf_parameter_mgr.getTrainData()).map(parse).repeat().batch(16)

@tf.function
def step(iterator):
    def work(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, tf.linalg.matvec(x, weight)))
        weight.assign_sub(0.5 * tape.gradient(loss, weight))
        return loss
    return strategy.reduce("SUM", strategy.run(work, next(iterator)), axis=None)

iterator = iter(coordinator.create_per_worker_dataset(data))
first = coordinator.schedule(step, args=(iterator,)).fetch()
for _ in range(40):
    last = coordinator.schedule(step, args=(iterator,))
coordinator.join()
print("losses", float(first), float(last.fetch()), flush=True)
tf.train.Checkpoint(weight=weight).write(os.path.join(arguments.train_dir, "model.ckpt"))
"""


def write_records(folder: Path) -> dict[str, str]:
    import tensorflow as tf

    generator = np.random.default_rng(0)
    splits = {}
    for split, count in {"train": 64, "test": 32}.items():
        (folder / split).mkdir()
        records = []
        for x in generator.normal(size=(count, 4)):
            features = {
                "x": tf.train.Feature(float_list=tf.train.FloatList(value=x)),
                "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(x.sum() > 0)])),
            }
            records.append(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
        (folder / split / "part-00000-of-00001").write_bytes(b"".join(map(frame, records)))
        splits[split] = str(folder / split)
    return splits


def run(folder: Path, program: str, data: Mapping[str, str], ranks: int, **parameters: object) -> list[str]:
    """Output of every rank of a training in `folder`; each must end with 0."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "main.py").write_text(program)
    values = {"batch_size": 16, "hyperparameter": {"epoch": 3}, **parameters}
    checkpoints = folder / "checkpoints"
    TrainingSpec(
        str(folder / "code"), str(checkpoints), "", dict(data), parameters=values, framework="TensorFlow"
    ).write(folder / "spec.json")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    packages = [
        "libs/sdk",
        "libs/recordkit",
        "libs/workerkit",
        "libs/servicekit",
        "libs/contracts",
        "services/training",
    ]
    common = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY / package) for package in packages),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-m", "training_service.worker.run_training", str(folder / "spec.json")]
    started = [
        subprocess.Popen(
            command, env=common | {"RANK": str(rank)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * ranks, "\n".join(outputs)
    return outputs


def weights_in(output: str) -> list[float]:
    line = next(line for line in output.splitlines() if line.startswith("weights "))
    values: list[float] = json.loads(line.removeprefix("weights "))
    return values


@pytest.mark.slow
def test_a_keras_program_learns_the_same_on_one_and_two_workers(tmp_path: Path) -> None:
    data = write_records(tmp_path)
    (alone,) = run(tmp_path / "one", KERAS_PROGRAM, data, 1)
    together = run(tmp_path / "two", KERAS_PROGRAM, data, 2)
    assert "Total iterations: 12" in alone
    assert "Total iterations: 12" in together[0]
    assert "Iteration 12: tag test_accuracy, simple_value" in together[0]
    assert "Iteration 1: tag train_loss, simple_value" in together[0]
    assert "Iteration" not in together[1]
    assert weights_in(together[0]) == pytest.approx(weights_in(alone), abs=1e-5)
    assert weights_in(together[1]) == weights_in(together[0])
    assert framework_named("TensorFlow").weight_file(tmp_path / "two" / "checkpoints") == "model_epoch_final.keras"


@pytest.mark.slow
def test_a_parameter_server_ends_with_its_worker(tmp_path: Path) -> None:
    data = {"train": str(tmp_path / "train")}
    worker, _ = run(tmp_path / "run", SERVER_PROGRAM, data, 2, distribute_strategy="ParameterServerStrategy")
    assert "total 3.0 /job:ps/task:0" in worker
    assert framework_named("TensorFlow").weight_file(tmp_path / "run" / "checkpoints") == "model.ckpt-1.index"


@pytest.mark.slow
def test_a_coordinator_trains_through_worker_and_server(tmp_path: Path) -> None:
    data = write_records(tmp_path)
    strategy = "ParameterServerStrategy"
    chief, *_ = run(tmp_path / "run", COORDINATOR_PROGRAM, data, 3, distribute_strategy=strategy)
    assert "device /job:ps/replica:0/task:0" in chief
    first, last = chief.split("losses ")[1].split()[:2]
    assert float(last) < 0.5 * float(first)
    assert framework_named("TensorFlow").weight_file(tmp_path / "run" / "checkpoints") == "model.ckpt.index"


def test_an_unknown_strategy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "KERAS_BACKEND": "tensorflow"}.items():
        monkeypatch.setenv(name, value)
    for name in ("TF_FORCE_GPU_ALLOW_GROWTH", "TF_CPP_MIN_LOG_LEVEL"):
        # So that what is set now is taken back.
        monkeypatch.setenv(name, "")
    spec = TrainingSpec(str(tmp_path), str(tmp_path), "", {}, {"distribute_strategy": "TPUStrategy"})
    with pytest.raises(SystemExit, match="'TPUStrategy' is not known; known: MultiWorkerMirrored"):
        framework_named("TensorFlow").train(spec)


def test_roles() -> None:
    hosts = ["h:1", "h:2", "h:3"]
    assert roles(hosts, 1, servers=0) == ({"worker": hosts}, {"type": "worker", "index": 1})
    cluster = {"chief": ["h:1"], "worker": ["h:2"], "ps": ["h:3"]}
    tasks = [roles(hosts, rank, servers=1) for rank in range(3)]
    assert tasks == [
        (cluster, {"type": "chief", "index": 0}),
        (cluster, {"type": "worker", "index": 0}),
        (cluster, {"type": "ps", "index": 0}),
    ]


@pytest.mark.parametrize(
    ("files", "best"),
    [
        (["model_epoch_final.weights.h5", "model_epoch_9.keras"], "model_epoch_final.weights.h5"),
        (["model_epoch_9.keras", "model_epoch_10.keras", "a.h5"], "model_epoch_10.keras"),
        (["model.ckpt-9.index", "model.ckpt-10.index", "checkpoint"], "model.ckpt-10.index"),
        (["saved_model.pb"], "saved_model.pb"),
        ([".draft.keras", "serving.json"], None),
    ],
)
def test_best_weights(tmp_path: Path, files: list[str], best: str | None) -> None:
    for file in files:
        (tmp_path / file).write_bytes(b"w")
    assert framework_named("TensorFlow").weight_file(tmp_path) == best


def test_several_servers_are_the_last_ranks() -> None:
    hosts = [f"h:{number}" for number in range(4)]
    cluster, task = roles(hosts, 3, servers=2)
    assert cluster == {"chief": ["h:0"], "worker": ["h:1"], "ps": ["h:2", "h:3"]}
    assert task == {"type": "ps", "index": 1}
    said = [server_arguments(hosts, rank, 2) for rank in (0, 1, 2)]
    assert [words[1:4:2] for words in said] == [["h:2,h:3", "h:0,h:1"]] * 3
    assert [words[5::2] for words in said] == [["worker", "0"], ["worker", "1"], ["ps", "0"]]
