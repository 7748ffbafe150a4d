"""TensorFlow over REST: the template that ships, and programs in the style of the original platform."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from dlmesh_platform.client import ApiError, Client, named
from dlmesh_platform.launch import RunningPlatform
from dlmesh_platform.main_job import MainJob
from testkit.platform import attempts_of, held_out, ranks_of

pytestmark = [pytest.mark.platform, pytest.mark.slow]

# Written from the documented interface alone.
READING = """
import argparse
import os
import tensorflow as tf
import tf_parameter_mgr

parser = argparse.ArgumentParser()
parser.add_argument("--train_dir", type=str)
parser.add_argument("--weights", type=str, default="")
FLAGS, _ = parser.parse_known_args()

def parse(record):
    features = {"image/encoded": tf.io.FixedLenFeature([], tf.string),
                "image/class/label": tf.io.FixedLenFeature([], tf.int64)}
    example = tf.io.parse_single_example(record, features)
    image = tf.io.decode_image(example["image/encoded"], channels=1, expand_animations=False)
    image.set_shape((16, 16, 1))
    return tf.cast(image, tf.float32) / 255.0, example["image/class/label"]

def read(files, batch_size):
    return tf.data.TFRecordDataset(files).map(parse).cache().shuffle(2000, seed=1).batch(batch_size)

train = read(tf_parameter_mgr.getTrainData(), tf_parameter_mgr.getTrainBatchSize())
test = read(tf_parameter_mgr.getTestData(), tf_parameter_mgr.getTestBatchSize())
labels = open(os.path.join(os.path.dirname(tf_parameter_mgr.getTrainData(False)), "labels.txt")).read().split()
model = tf.keras.Sequential([
    tf.keras.Input((16, 16, 1)),
    tf.keras.layers.Conv2D(16, 3, activation="relu"),
    tf.keras.layers.MaxPooling2D(2),
    tf.keras.layers.Flatten(),
    tf.keras.layers.Dense(len(labels)),
])
loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
optimizer = tf_parameter_mgr.getOptimizer(tf_parameter_mgr.getLearningRate())
"""

FITTING = """
from monitor_tf import TFKerasMonitorCallback

model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
steps = len(list(train))
model.fit(train, epochs=tf_parameter_mgr.getMaxSteps() // steps, verbose=2, callbacks=[
    TFKerasMonitorCallback(test),
    tf.keras.callbacks.ModelCheckpoint(os.path.join(FLAGS.train_dir, "model_epoch_{epoch}.keras")),
])
model.save(os.path.join(FLAGS.train_dir, "model_epoch_final.keras"))
"""

STEPPING = """
from monitor_cb import CMonitor

log_dir = os.environ["LOG_DIR"]
monitor = CMonitor(log_dir, tf_parameter_mgr.getTestInterval(), tf_parameter_mgr.getMaxSteps())
step = 0
for images, truth in train.repeat():
    with tf.GradientTape() as tape:
        output = model(images, training=True)
        value = loss(truth, output)
    gradients = tape.gradient(value, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    step += 1
    monitor.SummaryScalar("train loss", value)
    if step % tf_parameter_mgr.getTestInterval() == 0:
        right = [tf.reduce_mean(tf.cast(tf.argmax(model(x), 1) == y, tf.float32)) for x, y in test]
        monitor.SummaryScalar("test accuracy", sum(right) / len(right), step)
        monitor.SummaryHist("weight", model.trainable_variables[0], step=step)
    if step >= tf_parameter_mgr.getMaxSteps():
        break
monitor.close()
model.save_weights(os.path.join(FLAGS.train_dir, "model_epoch_final.weights.h5"))
"""


@pytest.fixture(scope="module")
def records(platform: RunningPlatform) -> MainJob:
    """A dataset of TFRecords, scikit-learn's digits."""
    job = MainJob(platform.client(), "digits", prefix="tensorflow", backend="TFRecords")
    job.create_dataset()
    job.await_dataset()
    return job


def make_model(admin: Client, name: str, **fields: Any) -> None:
    admin.post(
        "/models",
        {
            "name": name,
            "templatename": "tensorflow-image-classification",
            "dataset": "tensorflow",
            "sig": "local",
            "type": "Training",
            "accelerator": "Native",
            "batchsize": 64,
            **fields,
        },
    )


@pytest.mark.parametrize("accelerator", ["Native", "Elastic"])
def test_the_template_trains_on_two_workers_survives_a_kill_validates_and_goes(
    platform: RunningPlatform, admin: Client, records: MainJob, accelerator: str
) -> None:
    assert named(admin.get("/frameworks"), "name", "TensorFlow")["frameworkVersion"]
    hyperparameter = {"solvertype": "Adam", "learningrate": 0.002, "lrpolicy": "fixed", "epoch": 4}
    make_model(admin, "tensorflow", hyperparameter=hyperparameter, accelerator=accelerator)
    path = "/models/tensorflow/trainings"
    fields = {"dlFramework": "TensorFlow", "clusterSize": 2, "checkpointInterval": 5}
    admin.post(path, {"trainName": "first", **fields})
    steps = Path(records.training()["path"]) / "steps"
    admin.until(lambda: any(steps.glob("step-*/manifest.json")), seconds=240)
    os.kill(ranks_of(platform, records.training())[-1].pid, signal.SIGKILL)
    training = records.await_training()
    assert training["progress"] == 100
    before, after = ((attempt / "rank-0.out").read_text() for attempt in attempts_of(platform, training))
    assert "Iteration 1: " in before
    assert "Iteration 1: " not in after
    assert admin.get(f"{path}/first/weightfile") == "model_epoch_final.keras"
    metrics = ["Top1", "Top5", "ConfusionMatrix"]
    admin.post("/models/tensorflow/validations", {"valName": "check", "trainName": "first", "metrics": metrics})
    validation = records.await_validation()
    assert validation.top1 >= 0.95
    assert sum(map(sum, validation.confusion)) == pytest.approx(179, abs=6)
    if accelerator == "Elastic":
        # Served alike; once is enough.
        records.create_inference()
        records.start_prediction(held_out(platform), "keras-ten")
        predictions = records.await_prediction("keras-ten")
        assert sum(prediction.label == prediction.image[0] for prediction in predictions) >= 9
        admin.delete("/inferences/keras-ten")
        admin.delete(f"/models/{records.inference_model}")
    admin.delete("/models/tensorflow/validations/check")
    admin.delete(f"{path}/first")
    admin.delete("/models/tensorflow")
    with pytest.raises(ApiError) as refusal:
        admin.get("/models/tensorflow")
    assert refusal.value.status == 404


@pytest.mark.parametrize(
    ("name", "program", "weights", "best"),
    [
        ("fitting", FITTING, "model_epoch_final.keras", 0.85),
        ("stepping", STEPPING, "model_epoch_final.weights.h5", 0.85),
    ],
)
def test_a_program_of_the_original_platform_runs_unchanged(
    admin: Client, platform: RunningPlatform, records: MainJob, name: str, program: str, weights: str, best: float
) -> None:
    hyperparameter = {
        "solvertype": "Momentum",
        "momentum": 0.9,
        "learningrate": 0.1,
        "lrpolicy": "exponential",
        "decaysteps": 50,
        "decayrate": 0.8,
        "maxiteration": 92,
    }
    model = f"tensorflow-{name}"
    make_model(admin, model, tfmainContent=READING + program, hyperparameter=hyperparameter, accelerator="Single")
    path = f"/models/{model}/trainings"
    fields = {"trainName": "first", "dlFramework": "TensorFlow", "clusterSize": 1, "testInterval": 46}
    admin.post(path, fields)
    training = MainJob(admin, "digits", prefix=model).await_training()
    assert (training["status"], training["progress"]) == ("FINISHED", 100)
    assert admin.get(f"{path}/first/weightfile") == weights
    log = (platform.home / "jobs" / training["appid"] / "attempt-1" / "rank-0.out").read_text()
    assert "Total iterations: 92" in log
    accuracy = [line for line in log.splitlines() if "tag test_accuracy" in line]
    assert accuracy[-1].startswith("Iteration 92: ")
    assert float(accuracy[-1].rsplit(" ", 1)[1]) >= best
    if name == "stepping":
        assert list(Path(training["path"]).parent.glob("log/events.out.tfevents.*"))
    admin.delete(f"{path}/first")
    admin.delete(f"/models/{model}")
