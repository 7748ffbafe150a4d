"""The loop of the built-in PyTorch templates: DeepSpeed, checkpoints, tests and reports around a model and its loss.

A run that was interrupted continues from its newest complete checkpoint, sample for sample; SIGTERM writes one and ends
the run with code 143. The same program runs on one worker and on many.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import workerkit
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from dlmesh_sdk import deepspeed_config
from dlmesh_sdk import pth_parameters as parameters
from dlmesh_sdk.checkpoints import FINAL_WEIGHTS, Checkpoints
from dlmesh_sdk.gang import Gang
from dlmesh_sdk.interruptions import interrupt
from dlmesh_sdk.monitor import PytorchMonitor
from dlmesh_sdk.sharded_batches import ShardedBatches, settled_batch
from dlmesh_sdk.wrong_data import UnusableError

# Of a model's outputs and the targets of a batch: one number, the mean over the batch.
Measure = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Task:
    """What is learned.

    `train_data` and `test_data` are map-style datasets of (input, target); `collate` makes a list of them a batch.
    `metrics` are reported beside the loss, by name; `accuracy` (0 to 1) is the one that people look for. `serving` is
    written beside the weights: what validation and serving must know to rebuild the model.
    """

    model: nn.Module
    train_data: Dataset[Any]
    test_data: Dataset[Any]
    loss: Measure
    metrics: Mapping[str, Measure] = field(default_factory=dict)
    serving: Mapping[str, Any] = field(default_factory=dict)
    collate: Callable[[list[Any]], Any] = default_collate

    @property
    def samples(self) -> int:
        """Samples of `train_data`; the type of torch's datasets does not say that map-style ones have a length."""
        return len(self.train_data)  # type: ignore[arg-type]


def train(task: Task, gang: Gang, train_dir: str | Path, weights: str = "") -> None:
    """Train to the end and write the weights into `train_dir`, from the file or folder `weights` if there is one.

    Optimizer, learning rate, epochs, batch size and intervals are the model's hyperparameters; ds_config.json in the
    working directory is DeepSpeed's configuration. SystemExit(143) when it was asked to stop.
    """
    _Run(task, gang, Path(train_dir), weights).to_the_end()


class _Run:
    def __init__(self, task: Task, gang: Gang, train_dir: Path, weights: str) -> None:
        import deepspeed  # not before the gang has chosen the device: it looks at the machine when it is imported

        self.task, self.gang = task, gang
        if weights:
            load_weights(task.model, weights)
        task.model.to(gang.device)
        optimizer = parameters.getOptimizer(task.model)
        self.scheduler = parameters.getLearningRate(optimizer)
        self.batch_size = settled_batch(
            parameters.getTrainBatchSize(),
            task.samples,
            multiple_of=gang.world_size,
            tell=gang.is_first,
        )
        config = deepspeed_config.build("ds_config.json", batch_size=self.batch_size, world_size=gang.world_size)
        self.engine, *_ = deepspeed.initialize(model=task.model, optimizer=optimizer, config=config)
        self.checkpoints = Checkpoints(
            train_dir, gang, keep=parameters.getCheckpointsKept(), interval_steps=parameters.getCheckpointInterval()
        )
        if gang.is_first:
            write_serving(train_dir, task.serving)
        self.step, state = self.checkpoints.load_newest(self.engine)
        if state and self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        # Of the epoch so far: the mean loss by which a plateau is judged.
        self.loss_sum: float | Tensor = float(state.get("loss_sum", 0.0))
        self.per_epoch = ShardedBatches.per_epoch(task.samples, self.batch_size)
        total = self.per_epoch * parameters.getEpoch()
        self.total = min(total, parameters.getMaxSteps() or total)
        self.monitor = PytorchMonitor(self.total) if gang.is_first else None

    def to_the_end(self) -> None:
        """All epochs that are left, the last test, the final weights."""
        while self.step < self.total:
            self._epoch(*divmod(self.step, self.per_epoch))
        self._test()
        self.checkpoints.write_weights(self.engine, FINAL_WEIGHTS)
        if self.monitor:
            self.monitor.close()
        self.gang.leave()

    def _epoch(self, epoch: int, done: int) -> None:
        gang, seed = self.gang, parameters.getSeed()
        batches = ShardedBatches(
            self.task.samples,
            self.batch_size,
            gang.rank,
            gang.world_size,
            seed=seed,
            epoch=epoch,
            start=done,
        )
        loader = DataLoader(
            self.task.train_data,
            batch_sampler=batches,
            num_workers=gang.loader_workers,
            collate_fn=self.task.collate,
            pin_memory=gang.device.type == "cuda",
        )
        for inputs, targets in timed(loader, self.monitor):
            # Asked before the step and answered after it: asking afterwards, all would wait once more for the slowest.
            vote = gang.vote(gang.stop_requested, self.checkpoints.due(self.step + 1))
            # Of this step alone: what dropout does after a resume is what it would have done.
            torch.manual_seed(seed + (self.step << 10) + gang.rank)
            self._train(to_device(inputs, gang.device), to_device(targets, gang.device))
            if self.step % parameters.getTestInterval() == 0 and self.step < self.total:
                self._test(parameters.getTestIteration())
            if self.step % self.per_epoch == 0:
                self._end_epoch(epoch + 1)
            stopping, due = vote()
            interrupt(self.checkpoints, self.step, self.total, self._save, stopping=stopping, due=due)
            if self.step >= self.total:
                return

    def _train(self, inputs: Any, targets: Any) -> None:
        self.engine.train()
        outputs = self.engine(inputs)
        loss = self.task.loss(outputs, targets)
        self.engine.backward(loss)
        self.engine.step()
        self.step += 1
        self.loss_sum += loss.detach()
        if self.monitor and self.monitor.is_due(self.step, self.batch_size):
            with torch.no_grad():
                values: dict[str, Any] = {
                    name: measure(outputs, targets) for name, measure in self.task.metrics.items()
                }
            rate = self.engine.optimizer.param_groups[0]["lr"]
            self.monitor.train(self.step, loss, values.pop("accuracy", None), learning_rate=rate, **values)

    def _save(self) -> None:
        self.gang.average(self.engine.module.buffers())
        state = self.scheduler.state_dict() if self.scheduler else None
        # One state goes on as that of every worker: it holds the mean of theirs.
        loss_sum = self.gang.sum(float(self.loss_sum))[0] / self.gang.world_size
        self.checkpoints.save(self.engine, self.step, scheduler=state, loss_sum=loss_sum)

    def _end_epoch(self, number: int) -> None:
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            mean = self.gang.sum(float(self.loss_sum))[0] / (self.gang.world_size * self.per_epoch)
            self.scheduler.step(mean)
        elif self.scheduler:
            self.scheduler.step()
        self.loss_sum = 0.0
        self.gang.average(self.engine.module.buffers())
        self.checkpoints.write_weights(self.engine, f"model_epoch_{number}.pth")

    @torch.no_grad()
    def _test(self, max_batches: int | None = None) -> None:
        """Report loss and metrics on the first `max_batches` batches of the test data (all of them when None)."""
        self.engine.eval()
        # Moving means of batch normalization are of a worker's own shares until then.
        self.gang.average(self.engine.module.buffers())
        task, gang, batch_size = self.task, self.gang, parameters.getTestBatchSize()
        data: Any = task.test_data
        samples = len(data) if max_batches is None else min(len(data), max_batches * batch_size)
        measures = {"loss": task.loss, **task.metrics}
        sums = dict.fromkeys(measures, 0.0)
        for start in range(0, samples, batch_size):
            workerkit.heartbeat()
            mine = range(start + gang.rank, min(start + batch_size, samples), gang.world_size)
            # A worker without a sample in the last batch still takes part: with ZeRO 3 a forward pass is collective.
            inputs, targets = task.collate([data[index] for index in mine or [start]])
            outputs = self.engine(to_device(inputs, gang.device))
            targets = to_device(targets, gang.device)
            if mine:
                for name, measure in measures.items():
                    sums[name] += float(measure(outputs, targets)) * len(mine)
        totals = dict(zip(sums, gang.sum(*sums.values()), strict=True))
        if self.monitor:
            values = {name: total / samples for name, total in totals.items()}
            self.monitor.test(self.step, values.pop("loss"), values.pop("accuracy", None), **values)


def timed(batches: Iterable[Any], monitor: PytorchMonitor | None = None) -> Iterator[Any]:
    """The batches; the monitor is told how long each was waited for.

    No thread reads ahead: on a CPU it takes the interpreter from the training, which costs more than the waiting.
    On a GPU the loader's processes read ahead.
    """
    source = iter(batches)
    end = object()
    while True:
        begin = time.perf_counter()
        batch = next(source, end)
        if batch is end:
            return
        if monitor:
            monitor.waited(time.perf_counter() - begin)
        yield batch


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors, and dicts, lists and tuples of them, on `device`; everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_device(item, device) for item in value)
    return value


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Fraction of the rows of `outputs` [n, classes] whose highest value is at the target's index [n]."""
    return (outputs.argmax(1) == targets).float().mean()


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of `outputs` [n, classes], which may be of a smaller type, and target indices [n]."""
    return nn.functional.cross_entropy(outputs.float(), targets)


def write_serving(train_dir: str | Path, serving: Mapping[str, Any]) -> None:
    """Write what validation and serving must know to rebuild the model beside its weights."""
    Path(train_dir).mkdir(parents=True, exist_ok=True)
    (Path(train_dir) / "serving.json").write_text(json.dumps({**serving, "framework": "PyTorch"}))


def read_serving(location: str | Path) -> dict[str, Any]:
    """What `write_serving` wrote beside the weights at `location` (file or folder); empty when there is nothing."""
    path = Path(location)
    file = (path.parent if path.is_file() else path) / "serving.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content


def find_weights(location: str | Path) -> Path:
    """The file itself, or the final (else the newest) weights in a folder; FileNotFoundError when it has none."""
    path = Path(location)
    if path.is_file():
        return path
    files = [file for file in path.glob("*.pth") if "optimizer_state" not in file.name]
    if not files:
        raise FileNotFoundError(f"--weights: there is no .pth file in {path}")
    return max(files, key=lambda file: (file.name.startswith("model_epoch_final"), file.stat().st_mtime))


def _state_dict(file: Path) -> dict[str, Any]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes torch raise
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UnusableError(f"--weights: {file.name} cannot be read as a state dict of torch: {reason}") from None
    if not isinstance(found, dict):
        raise UnusableError(f"--weights: {file.name} holds something else than a state dict")
    return found


def _shape(value: Any) -> list[int] | str:
    return list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def load_weights(model: nn.Module, location: str | Path) -> None:
    """Load the state dict at `location` (file or folder); UnusableError says that there is none, or which of its
    weights do not fit the model."""
    try:
        file = find_weights(location)
    except FileNotFoundError as error:
        raise UnusableError(str(error)) from None
    found = _state_dict(file)
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own.keys() - found.keys()]
    wrong += [f"{name} is not in the model" for name in found.keys() - own.keys()]
    wrong += [
        f"{name} is {_shape(found[name])} and not {_shape(own[name])}"
        for name in own.keys() & found.keys()
        if _shape(found[name]) != _shape(own[name])
    ]
    if wrong:
        raise UnusableError(f"{file.name} does not fit this model: {'; '.join(sorted(wrong)[:5])}")
    model.load_state_dict(found)
