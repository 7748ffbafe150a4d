"""What the TensorFlow monitors print, report and write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def off_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DLMESH_PARAMETERS", "DLMESH_JOB_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)


def compiled_model() -> Any:
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="sgd", loss=loss, metrics=["accuracy"])
    return model


def numbers(count: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    return x, (x.sum(1) > 0).astype(np.int32)


def test_fit_is_printed_reported_and_tested(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tensorflow as tf
    from monitor_tf import TFKerasMonitorCallback

    monkeypatch.setenv("DLMESH_JOB_ID", "j1")
    monkeypatch.setenv("DLMESH_JOB_DIR", str(tmp_path))
    monkeypatch.setattr("dlmesh_sdk.monitor.PRINT_SECONDS", 0.0)
    model = compiled_model()
    train, test = (tf.data.Dataset.from_tensor_slices(numbers(count)).batch(8) for count in (40, 24))
    monitor = TFKerasMonitorCallback(test, test_interval=4, test_iteration=2)
    history = model.fit(train, epochs=2, verbose=0, shuffle=False, callbacks=[monitor])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Total iterations: 10"
    assert sum("tag train_loss" in line for line in lines) == 10
    tested = [line.split(":")[0] for line in lines if "tag test_accuracy" in line]
    assert tested == ["Iteration 4", "Iteration 8", "Iteration 10"]
    # A test in the middle of an epoch does not disturb the epoch's mean, and the last is over all of the test data.
    assert f"Iteration 10: tag train_loss, simple_value {history.history['loss'][-1]:.6g}" in lines
    loss, accuracy = model.evaluate(test, verbose=0)
    assert f"Iteration 10: tag test_loss, simple_value {loss:.6g}" in lines
    assert f"Iteration 10: tag test_accuracy, simple_value {accuracy:.6g}" in lines
    points = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"test_loss", "test_accuracy"} <= set(points[-1]["values"])
    rates = [point["values"]["learning_rate"] for point in points if "train_loss" in point["values"]]
    assert rates == pytest.approx([float(model.optimizer.learning_rate)] * 10)
    assert {"memory_bytes", "steps_per_second"} <= set(points[2]["values"])
    assert json.loads((tmp_path / "report.json").read_text())["progress"]["done"] == 10


def test_other_workers_are_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from monitor_tf import TFKerasMonitorCallback

    monkeypatch.setenv("RANK", "1")
    x, y = numbers(16)
    compiled_model().fit(x, y, batch_size=8, verbose=0, callbacks=[TFKerasMonitorCallback((x, y))])
    assert capsys.readouterr().out == ""


def test_arrays_and_validation_data(capsys: pytest.CaptureFixture[str]) -> None:
    from monitor_tf import TFKerasMonitorCallback

    x, y = numbers(16)
    compiled_model().fit(x, y, batch_size=8, verbose=0, callbacks=[TFKerasMonitorCallback((x, y), 1, 1)])
    assert capsys.readouterr().out.count("tag test_loss") == 3
    compiled_model().fit(x, y, batch_size=8, verbose=0, validation_data=(x, y), callbacks=[TFKerasMonitorCallback()])
    assert capsys.readouterr().out.count("tag test_loss") == 1


def events(folder: Path) -> dict[str, list[int]]:
    """Steps by tag of the TensorBoard files in `folder`."""
    from tensorflow.compat.v1.train import summary_iterator

    found: dict[str, list[int]] = {}
    for file in folder.iterdir():
        for event in summary_iterator(str(file)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


@pytest.mark.filterwarnings("ignore:.*tf_record_iterator.*")
def test_summaries_of_eager_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from monitor_cb import CMonitor

    monitor = CMonitor(str(tmp_path), 2, 3)
    for step in range(1, 4):
        monitor.SummaryScalar("train loss", 1.0 / step)
        monitor.SummaryScalar("train accuracy", 0.5)
        monitor.SummaryScalar("test accuracy", 0.75, step=step)
    monitor.SummaryScalar("test loss", 0.25, step=3)
    monitor.SummaryHist("weight", np.arange(10.0), "dense:0")
    monitor.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Total iterations: 3"
    assert "Iteration 3: tag train_loss, simple_value 0.333333" in lines
    assert "Iteration 3: tag test_loss, simple_value 0.25" in lines
    assert sum("tag test_accuracy, simple_value 0.75" in line for line in lines) == 3
    assert events(tmp_path) == {
        "train_loss": [1, 2, 3],
        "train_accuracy": [1, 2, 3],
        "test_accuracy": [1, 2, 3],
        "test_loss": [3],
        "weight/dense_0": [1],
    }


@pytest.mark.filterwarnings("ignore:.*tf_record_iterator.*")
def test_a_test_is_of_the_newest_training_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from monitor_cb import CMonitor

    monitor = CMonitor(str(tmp_path), 2, 4)
    for step in range(1, 5):
        monitor.SummaryScalar("train loss", 1.0 / step)
        if step % 2 == 0:
            monitor.SummaryScalar("test loss", 2.0 / step)
            monitor.SummaryScalar("test accuracy", 0.5)
    monitor.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "test_loss" in line] == [
        "Iteration 2: tag test_loss, simple_value 1",
        "Iteration 4: tag test_loss, simple_value 0.5",
    ]
    found = events(tmp_path)
    assert (found["test_loss"], found["test_accuracy"]) == ([2, 4], [2, 4])


@pytest.mark.filterwarnings("ignore:.*tf_record_iterator.*")
def test_summaries_of_a_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tensorflow as tf
    from monitor_cb import CMonitor

    with tf.Graph().as_default():
        step = tf.compat.v1.train.get_or_create_global_step()
        weight = tf.compat.v1.get_variable("w", initializer=4.0, use_resource=True)
        loss = tf.square(weight)
        update = tf.compat.v1.train.GradientDescentOptimizer(0.25).minimize(loss, step)
        monitor = CMonitor(str(tmp_path), 2, 4)
        monitor.SummaryScalar("train loss", loss)
        monitor.SummaryScalar("test loss", tf.identity(loss))
        monitor.SummaryHist("weight", weight)
        stop = tf.compat.v1.train.StopAtStepHook(last_step=4)
        with tf.compat.v1.train.MonitoredTrainingSession(hooks=[monitor, stop]) as session:
            while not session.should_stop():
                session.run(update)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Total iterations: 4"
    assert [line.split(":")[0] for line in lines if "tag test_loss" in line] == ["Iteration 2", "Iteration 4"]
    assert "Iteration 4: tag train_loss" in "\n".join(lines)
    assert events(tmp_path) == {"train_loss": [1, 2, 3, 4], "test_loss": [2, 4], "weight": [2, 4]}
