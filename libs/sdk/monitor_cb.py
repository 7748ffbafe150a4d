"""TensorBoard summaries and progress of TensorFlow programs that run their own steps.

With eager execution, call `SummaryScalar` and `SummaryHist` with values after each step (not inside a tf.function).
In a graph (tf.compat.v1), call them once with tensors and give the monitor to the session as a hook:

    monitor = CMonitor(log_dir, getTestInterval(), getMaxSteps())
    monitor.SummaryScalar("train loss", loss)
    with tf.compat.v1.train.MonitoredTrainingSession(hooks=[monitor]) as session: ...
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from dlmesh_sdk.monitor import PytorchMonitor

_SERIES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


class CMonitor:
    """Writes summaries to `log_dir`; scalars called "train loss", "train accuracy", "test loss" and "test accuracy"
    are also printed as the documented lines and reported to the platform, by the first worker.

    As a session hook it fetches training scalars in every run, all else (test scalars, histograms) in every
    `test_interval`-th. `max_steps` is the number of iterations of the whole training.
    """

    def __init__(self, log_dir: str, test_interval: int = 100, max_steps: int = 0) -> None:
        self._is_first = os.environ.get("RANK", "0") == "0"
        self._log_dir, self._test_interval = str(log_dir), max(1, int(test_interval))
        self._monitor = PytorchMonitor(int(max_steps)) if self._is_first else None
        self._calls: Counter[str] = Counter()
        self._step, self._values = 0, dict[str, float]()
        self._trained = 0
        self._writer: Any = None
        self._train_fetches: dict[str, Any] = {}
        self._test_fetches: dict[str, Any] = {}
        self._global_step: Any = None

    def SummaryScalar(self, tag: str, value: Any, step: int | None = None) -> Any:
        """Record a number, or have a graph's scalar tensor recorded (then the summary operation is returned).

        `step` counts from 1; without it, each call for a tag is one step, and a test is of the newest training step.
        """
        import tensorflow as tf

        name = tag.strip().replace(" ", "_")
        if tf.is_symbolic_tensor(value):
            fetches = self._test_fetches if name.startswith("test") else self._train_fetches
            summary = tf.compat.v1.summary.scalar(name, value)
            fetches[name] = (value, summary)
            return summary
        step = self._next_step(name, step)
        self._write(lambda: tf.summary.scalar(name, value, step))
        self._observe(step, {name: float(value)})
        return None

    def SummaryHist(self, tag: str, values: Any, name: str = "", step: int | None = None) -> Any:
        """Record the distribution of an array, or have that of a graph's tensor recorded (then the summary operation is
        returned). `name` is added to the tag."""
        import tensorflow as tf

        title = "/".join(part.strip().replace(" ", "_").replace(":", "_") for part in (tag, name) if part)
        if tf.is_symbolic_tensor(values) or (isinstance(values, tf.Variable) and not tf.executing_eagerly()):
            summary = tf.compat.v1.summary.histogram(title, values)
            self._test_fetches[title] = (tf.constant(0.0), summary)
            return summary
        self._write(lambda: tf.summary.histogram(title, values, self._next_step(title, step)))
        return None

    def close(self) -> None:
        """Write and deliver what is still under way."""
        self._flush_values()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._monitor is not None:
            self._monitor.close()

    # The methods of a session hook; a monitored session asks for no base class.

    def begin(self) -> None:
        """The graph is about to be finalised."""
        import tensorflow as tf

        self._global_step = tf.compat.v1.train.get_global_step()

    def after_create_session(self, session: Any, coord: Any) -> None:
        """A session was made, at the start or after a failure."""
        if self._global_step is not None:
            self._step = int(session.run(self._global_step))

    def before_run(self, run_context: Any) -> Any:
        """Ask for the summaries that are due."""
        import tensorflow as tf

        due = dict(self._train_fetches)
        if (self._step + 1) % self._test_interval == 0:
            due |= self._test_fetches
        return tf.compat.v1.train.SessionRunArgs(due)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Record what was fetched."""
        import tensorflow as tf

        # Runs are counted: the global step may or may not have been read before this run's update.
        step = self._step + 1
        if self._is_first:
            if self._writer is None:
                with tf.Graph().as_default():
                    self._writer = tf.compat.v1.summary.FileWriter(self._log_dir)
            for _, summary in run_values.results.values():
                self._writer.add_summary(summary, step)
        self._observe(step, {name: float(value) for name, (value, _) in run_values.results.items() if name in _SERIES})
        self._step = step

    def end(self, session: Any) -> None:
        """The session ends."""
        self.close()

    def _next_step(self, name: str, step: int | None) -> int:
        if step is None and self._trained and name.startswith("test"):
            # Tests come seldom: this one is of the training step that was last.
            return self._trained
        self._calls[name] = self._calls[name] + 1 if step is None else int(step)
        if name.startswith("train"):
            self._trained = self._calls[name]
        return self._calls[name]

    def _write(self, record: Any) -> None:
        import tensorflow as tf

        if not self._is_first:
            return
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self._log_dir)
        with self._writer.as_default():
            record()

    def _observe(self, step: int, values: dict[str, float]) -> None:
        """Values of a step come one by one; they are reported together when the next step begins."""
        if step != self._step:
            self._flush_values()
            self._step = step
        self._values |= {name: value for name, value in values.items() if name in _SERIES}

    def _flush_values(self) -> None:
        values, self._values = self._values, {}
        if self._monitor is None:
            return
        if "train_loss" in values or "train_accuracy" in values:
            self._monitor.train(self._step, values.get("train_loss"), values.get("train_accuracy"))
        if "test_loss" in values or "test_accuracy" in values:
            self._monitor.test(self._step, values.get("test_loss"), values.get("test_accuracy"))
