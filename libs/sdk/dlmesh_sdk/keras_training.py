"""Training of Keras models on one or many workers, for programs that shall survive kills and changes of the gang.

Every worker computes the gradients of its part of the global batch; they are averaged by the sizes of the parts (gloo)
and applied by all. So a step is the same step on any number of workers, and a run goes on from a checkpoint of any
other number of them. The model has to run on Keras' TensorFlow backend.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch
import torch.distributed as dist
import workerkit

from dlmesh_sdk import run_parameters
from dlmesh_sdk.checkpoints import Checkpoints, write_whole
from dlmesh_sdk.gang import Gang
from dlmesh_sdk.interruptions import interrupt
from dlmesh_sdk.monitor import PytorchMonitor
from dlmesh_sdk.sharded_batches import ShardedBatches, settled_batch
from dlmesh_sdk.training_loop import timed
from dlmesh_sdk.wrong_data import UnusableError

FINAL_WEIGHTS = "model_epoch_final.keras"


def stack(samples: list[Any]) -> Any:
    """A batch of samples: every array (tensor, number) of them with one more dimension in front."""
    return keras.tree.map_structure(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *samples)


@dataclass(frozen=True)
class KerasTask:
    """What is learned.

    `model` is compiled; its loss is a mean over samples. `train_data` and `test_data` (may be None) are map-style
    datasets of (input, target); `collate` makes a list of them a batch of arrays. `callbacks` are Keras callbacks, on
    every worker; what those with methods `state_dict()` and `load_state_dict(state)` remember is in the checkpoints.
    `serving` is written beside the weights: what validation must know to rebuild the model.
    """

    model: Any
    train_data: Any
    test_data: Any
    callbacks: Sequence[Any] = ()
    serving: Mapping[str, Any] = field(default_factory=dict)
    collate: Callable[[list[Any]], Any] = stack


@dataclass(frozen=True)
class Plan:
    """How long and how often. Intervals are in steps; `test_batches` counts batches of one test in between; the last
    test takes all test data. 0 in `test_interval`, `test_epochs` or `weights_epochs` means never, in `epochs` or
    `max_steps` (not both) that the other one is the limit, in `checkpoint_interval` that time decides."""

    epochs: int
    batch_size: int
    test_batch_size: int = 0
    max_steps: int = 0
    test_interval: int = 0
    test_batches: int = 0
    test_epochs: int = 0
    weights_epochs: int = 1
    checkpoint_interval: int = 0
    checkpoints_kept: int = 2
    seed: int = 0


class Listener:
    """Is told of every step and test, on every worker; values are means over all workers' samples. Steps and epochs
    count from 1."""

    def trained(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        """One optimizer step was taken."""

    def tested(self, values: Mapping[str, float], step: int, epoch: int) -> None:
        """The model was tested."""

    def ended(self) -> None:
        """The training is complete; it was neither stopped nor broken off."""


def plan_of_the_model() -> Plan:
    """What the model's hyperparameters and the training say."""
    from dlmesh_sdk import tf_parameters

    hyperparameters = run_parameters.hyperparameters()
    max_steps = int(hyperparameters.get("maxiteration") or 0)
    return Plan(
        epochs=int(hyperparameters.get("epoch") or 0) or (0 if max_steps else tf_parameters.DEFAULT_EPOCHS),
        batch_size=run_parameters.getTrainBatchSize(),
        test_batch_size=run_parameters.getTestBatchSize(),
        max_steps=max_steps,
        test_interval=run_parameters.getTestInterval(),
        test_batches=run_parameters.getTestIteration(),
        checkpoint_interval=run_parameters.getCheckpointInterval(),
        checkpoints_kept=run_parameters.getCheckpointsKept(),
        seed=run_parameters.getSeed(),
    )


def train(
    task: KerasTask,
    gang: Gang,
    train_dir: str | Path,
    weights: str = "",
    plan: Plan | None = None,
    listener: Listener | None = None,
) -> None:
    """Train to the end and write the weights into `train_dir`, from the file or folder `weights` if there is one.

    Without a `plan` it is the model's. SystemExit(143) when it was asked to stop.
    """
    _Run(task, gang, Path(train_dir), weights, plan or plan_of_the_model(), listener or Listener()).to_the_end()


class _Run:
    def __init__(
        self, task: KerasTask, gang: Gang, train_dir: Path, weights: str, plan: Plan, listener: Listener
    ) -> None:
        # By the samples alone: the number of workers may change.
        plan = replace(plan, batch_size=settled_batch(plan.batch_size, len(task.train_data), tell=gang.is_first))
        self.task, self.gang, self.train_dir, self.plan, self.listener = task, gang, train_dir, plan, listener
        self.per_epoch = ShardedBatches.per_epoch(len(task.train_data), plan.batch_size)
        self.total = min(filter(None, (self.per_epoch * plan.epochs, plan.max_steps)))
        self.engine = _Engine(task.model, task.collate([task.train_data[0]]), gang)
        if weights:
            load_weights(task.model, weights)
        self.engine.agree()
        self.checkpoints = Checkpoints(
            train_dir, gang, keep=plan.checkpoints_kept, interval_steps=plan.checkpoint_interval
        )
        self.step, state = self.checkpoints.load_newest(self.engine)
        self.engine.vary()
        for callback, kept in zip(task.callbacks, state.get("callbacks", ()), strict=False):
            if kept is not None:
                callback.load_state_dict(kept)
        if gang.is_first and task.serving:
            write_serving(train_dir, task.serving)
        self.monitor = PytorchMonitor(self.total) if gang.is_first else None
        epochs = -(-self.total // self.per_epoch)
        self.callbacks = keras.callbacks.CallbackList(
            list(task.callbacks), model=task.model, epochs=epochs, steps=self.per_epoch, verbose=0
        )

    def to_the_end(self) -> None:
        self.task.model.stop_training = False
        self.callbacks.on_train_begin()
        while self.step < self.total and not self.task.model.stop_training:
            self._epoch(*divmod(self.step, self.per_epoch))
        values = self._test(None)
        self.callbacks.on_train_end(values)
        self.listener.ended()
        self.checkpoints.finish()
        self._write_weights(FINAL_WEIGHTS)
        if self.monitor:
            self.monitor.close()
        # Nobody leaves before the first worker has written.
        self.gang.barrier()
        self.gang.leave()

    def _epoch(self, epoch: int, done: int) -> None:
        gang, plan, data = self.gang, self.plan, self.task.train_data
        batches = ShardedBatches(
            len(data), plan.batch_size, gang.rank, gang.world_size, seed=plan.seed, epoch=epoch, start=done
        )
        # A worker beyond the samples of a batch takes part with the weight 0.
        loaded = ((self.task.collate([data[index] for index in mine or [0]]), len(mine)) for mine in batches)
        if not done:
            self.callbacks.on_epoch_begin(epoch)
        for (inputs, targets), samples in timed(loaded, self.monitor):
            self.callbacks.on_train_batch_begin(done)
            values = self.engine.train_step(inputs, targets, samples / plan.batch_size)
            self.step += 1
            self._report(values, epoch)
            self.callbacks.on_train_batch_end(done, values)
            done += 1
            if plan.test_interval and self.step % plan.test_interval == 0 and self.step < self.total:
                self._test(plan.test_batches or None)
            if done == self.per_epoch:
                self._end_epoch(epoch, values)
            model = self.task.model
            # A callback may look at what is another thing for every worker: the time, its rank.
            votes = gang.any(gang.stop_requested, self.checkpoints.due(self.step), bool(model.stop_training))
            stopping, due, model.stop_training = votes
            interrupt(self.checkpoints, self.step, self.total, self._save, stopping=stopping, due=due)
            if self.step >= self.total or model.stop_training:
                return

    def _report(self, values: Mapping[str, float], epoch: int) -> None:
        workerkit.heartbeat()
        self.listener.trained(values, self.step, epoch + 1)
        if self.monitor and self.monitor.is_due(self.step, self.plan.batch_size):
            rate = float(np.asarray(self.task.model.optimizer.learning_rate))
            self.monitor.train(self.step, *_loss_and_accuracy(values), learning_rate=rate)

    def _end_epoch(self, epoch: int, values: dict[str, float]) -> None:
        logs, plan = dict(values), self.plan
        if plan.test_epochs and (epoch + 1) % plan.test_epochs == 0 and self.step < self.total:
            logs |= {f"val_{name}": value for name, value in self._test(plan.test_batches or None).items()}
        self.callbacks.on_epoch_end(epoch, logs)
        if plan.weights_epochs and (epoch + 1) % plan.weights_epochs == 0:
            self._write_weights(f"model_epoch_{epoch + 1}.keras")

    def _save(self) -> None:
        callbacks = self.task.callbacks
        kept = [callback.state_dict() if hasattr(callback, "state_dict") else None for callback in callbacks]
        self.checkpoints.save(self.engine, self.step, callbacks=kept)

    def _test(self, max_batches: int | None) -> dict[str, float]:
        """Loss and metrics on the first `max_batches` batches of the test data (all of them when None)."""
        data, gang, size = self.task.test_data, self.gang, self.plan.test_batch_size or self.plan.batch_size
        if data is None or not len(data):
            return {}
        samples = len(data) if max_batches is None else min(len(data), max_batches * size)
        self.callbacks.on_test_begin()
        self.engine.begin_test()
        for start in range(0, samples, size):
            workerkit.heartbeat()
            if mine := range(start + gang.rank, min(start + size, samples), gang.world_size):
                inputs, targets = self.task.collate([data[index] for index in mine])
                self.engine.test_step(inputs, targets, len(mine))
        values = self.engine.end_test(samples)
        self.callbacks.on_test_end(values)
        if self.monitor:
            self.monitor.test(self.step, *_loss_and_accuracy(values))
        self.listener.tested(values, self.step, -(-self.step // self.per_epoch))
        return values

    def _write_weights(self, name: str) -> None:
        if self.gang.is_first:
            write_weights(self.task.model, self.train_dir / name)


class _Engine:
    """The model's steps; and its whole state, in the form in which `Checkpoints` asks an engine for it."""

    def __init__(self, model: Any, example: Any, gang: Gang) -> None:
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(f"Keras runs on {keras.backend.backend()}; KERAS_BACKEND has to be tensorflow")
        if not getattr(model, "compiled", False):
            raise ValueError("the Keras model is not compiled: it has neither optimizer nor loss")
        self.model, self.gang = model, gang
        inputs, targets = example
        # What is built lazily has to be there before the steps become graphs.
        model.compute_metrics(inputs, targets, model(inputs))
        model.reset_metrics()
        model.optimizer.build(model.trainable_variables)
        # Moving means and the like; not counters and seeds.
        self._means = [
            variable for variable in model.non_trainable_variables if tf.as_dtype(variable.dtype).is_floating
        ]
        self._averaged = [*model.trainable_variables, *self._means]
        self._names: list[str] = []
        self._loss_sum = 0.0
        self._forward = tf.function(self._forward_and_backward, reduce_retracing=True)
        self._apply = tf.function(self._apply_averaged)
        self._alone = tf.function(self._train_alone, reduce_retracing=True)
        self._evaluate = tf.function(self._test_on, reduce_retracing=True)
        self.checkpoint_engine: Any = None

    def train_step(self, inputs: Any, targets: Any, share: float) -> dict[str, float]:
        """One optimizer step with this worker's `share` of the global batch; the means over all workers."""
        if self.gang.world_size == 1:
            means = self._alone(inputs, targets).numpy()
        else:
            flat = torch.from_numpy((self._forward(inputs, targets) * share).numpy())
            dist.all_reduce(flat)
            self._apply(tf.convert_to_tensor(flat.numpy()))
            means = flat[-len(self._names) :].numpy()
        return dict(zip(self._names, map(float, means), strict=True))

    def begin_test(self) -> None:
        """Forget the metrics."""
        self.model.reset_metrics()
        self._loss_sum = 0.0

    def test_step(self, inputs: Any, targets: Any, samples: int) -> None:
        """Count one batch."""
        self._loss_sum += float(self._evaluate(inputs, targets)) * samples

    def end_test(self, samples: int) -> dict[str, float]:
        """Loss and metrics over all that all workers counted."""
        (loss,) = self.gang.sum(self._loss_sum)
        for metric in self.model.metrics:
            for variable in metric.variables:
                values = variable.numpy()
                variable.assign(np.reshape(self.gang.sum(*values.ravel().tolist()), values.shape))
        values = {name: float(value) for name, value in self.model.get_metrics_result().items()}
        self.model.reset_metrics()
        return {**values, "loss": loss / samples}

    def agree(self) -> None:
        """Collective: all workers take the first one's weights."""
        for variable in self.model.variables if self.gang.world_size > 1 else ():
            value = torch.from_numpy(np.array(variable.numpy()).astype(np.float64))
            dist.broadcast(value, src=0)
            variable.assign(value.numpy().astype(variable.dtype))

    def vary(self) -> None:
        """Let every worker drop out others than the first one, whose seeds are those in the checkpoints."""
        for variable in self.model.non_trainable_variables if self.gang.rank else ():
            if variable.path.endswith("seed_generator_state"):
                seed, counter = variable.numpy()
                variable.assign([seed + self.gang.rank, counter])

    def _loss_and_results(self, inputs: Any, targets: Any, *, training: bool) -> tuple[Any, Any]:
        outputs = self.model(inputs, training=training)
        loss = self.model.compute_loss(x=inputs, y=targets, y_pred=outputs, training=training)
        return loss, outputs

    def _gradients(self, inputs: Any, targets: Any) -> tuple[list[Any], list[Any]]:
        """One for each trainable variable; and loss and metrics of this batch, whose names are kept."""
        model = self.model
        with tf.GradientTape() as tape:
            loss, outputs = self._loss_and_results(inputs, targets, training=True)
            scaled = model.optimizer.scale_loss(loss)
        gradients = tape.gradient(
            scaled,
            [variable.value for variable in model.trainable_variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        model.reset_metrics()
        results = {**model.compute_metrics(inputs, targets, outputs), "loss": loss}
        self._names = list(results)
        return [tf.convert_to_tensor(gradient) for gradient in gradients], list(results.values())

    def _train_alone(self, inputs: Any, targets: Any) -> Any:
        gradients, results = self._gradients(inputs, targets)
        self.model.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
        return tf.stack([tf.cast(result, tf.float32) for result in results])

    def _forward_and_backward(self, inputs: Any, targets: Any) -> Any:
        """Gradients, moving means and results, one after the other in one vector."""
        gradients, results = self._gradients(inputs, targets)
        parts = [*gradients, *(variable.value for variable in self._means), *results]
        return tf.concat([tf.reshape(tf.cast(part, tf.float32), [-1]) for part in parts], 0)

    def _apply_averaged(self, flat: Any) -> None:
        sizes = [int(np.prod(variable.shape)) for variable in self._averaged]
        parts = tf.split(flat[: sum(sizes)], sizes)
        parts = [
            tf.cast(tf.reshape(part, variable.shape), variable.dtype)
            for part, variable in zip(parts, self._averaged, strict=True)
        ]
        count = len(self.model.trainable_variables)
        self.model.optimizer.apply_gradients(zip(parts[:count], self.model.trainable_variables, strict=True))
        for mean, value in zip(self._means, parts[count:], strict=True):
            mean.assign(value)

    def _test_on(self, inputs: Any, targets: Any) -> Any:
        loss, outputs = self._loss_and_results(inputs, targets, training=False)
        self.model.compute_metrics(inputs, targets, outputs)
        return loss

    # What `Checkpoints` asks of an engine.

    def zero_optimization_stage(self) -> int:
        """Every worker has the whole state."""
        return 0

    def save_checkpoint(self, folder: str, *, tag: str, client_state: dict[str, Any], save_latest: bool) -> None:
        """Hand the state to `checkpoint_engine`; the first worker's is everybody's."""
        if self.gang.is_first:
            values = [torch.from_numpy(np.array(variable.numpy())) for variable in self._state()]
            content = {"paths": [variable.path for variable in self._state()], "values": values, **client_state}
            self.checkpoint_engine.save(content, str(Path(folder, tag, "state.pt")))

    def load_checkpoint(self, folder: str, tag: str) -> tuple[str, dict[str, Any]]:
        """Restore what `save_checkpoint` kept; ValueError when it is of another model."""
        content = torch.load(Path(folder, tag, "state.pt"), map_location="cpu", weights_only=True)
        variables = self._state()
        shapes = [tuple(value.shape) for value in content["values"]]
        if shapes != [tuple(variable.shape) for variable in variables]:
            raise ValueError(f"the checkpoint {Path(folder).name} is of another model or optimizer")
        for variable, value in zip(variables, content["values"], strict=True):
            variable.assign(value.numpy())
        return folder, {"state": content["state"]}

    def _state(self) -> list[Any]:
        return [*self.model.variables, *self.model.optimizer.variables]


def write_serving(train_dir: str | Path, serving: Mapping[str, Any]) -> None:
    """Write what validation must know to rebuild the model beside its weights."""
    Path(train_dir).mkdir(parents=True, exist_ok=True)
    (Path(train_dir) / "serving.json").write_text(json.dumps({**serving, "framework": "TensorFlow"}))


def write_weights(model: Any, file: Path) -> None:
    """Write the model without its optimizer's state, whole or not at all."""
    with _without_optimizer(model):
        write_whole(file, model.save)


def find_weights(location: str | Path) -> Path:
    """The file itself, or the final (else the newest) weights in a folder; FileNotFoundError when it has none."""
    path = Path(location)
    if path.is_file():
        return path
    files = [file for file in path.glob("[!.]*") if file.name.endswith((".keras", ".h5"))]
    if not files:
        raise FileNotFoundError(f"--weights: there is no .keras or .h5 file in {path}")
    return max(files, key=lambda file: (file.name.startswith("model_epoch_final"), file.stat().st_mtime))


def load_weights(model: Any, location: str | Path) -> None:
    """Load the weights at `location` (file or folder) into the built model; UnusableError when there are none, or they
    do not fit it."""
    try:
        file = find_weights(location)
    except FileNotFoundError as error:
        raise UnusableError(str(error)) from None
    try:
        with _without_optimizer(model):
            model.load_weights(file)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise UnusableError(f"{file.name} does not fit this model: {error}") from error


@contextlib.contextmanager
def _without_optimizer(model: Any) -> Iterator[None]:
    """Keras takes the optimizer's state for a part of the weights; it is that of another training."""
    optimizer, model.optimizer = getattr(model, "optimizer", None), None
    try:
        yield
    finally:
        model.optimizer = optimizer


def _loss_and_accuracy(values: Mapping[str, float]) -> tuple[float, float | None]:
    return values["loss"], next((value for name, value in values.items() if "acc" in name), None)
