"""Elastic training of torch modules: what every mode shares, and the mode SYNC.

Each worker computes the gradients of its part of the global batch. Their sum, weighted by the sizes of the parts, is
the gradient of the whole batch, so that a step is the same step on any number of workers. A run goes on from a
checkpoint of any other number of them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import workerkit
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from dlmesh_sdk import run_parameters
from dlmesh_sdk.checkpoints import FINAL_WEIGHTS, Checkpoints, write_whole
from dlmesh_sdk.fabric_loggers import Loggers, call, made
from dlmesh_sdk.fabric_options import FabricOptions, Sizing, train_folder
from dlmesh_sdk.gang import Gang
from dlmesh_sdk.interruptions import interrupt
from dlmesh_sdk.monitor import PytorchMonitor
from dlmesh_sdk.program_logs import say
from dlmesh_sdk.sharded_batches import ShardedBatches, settled_batch
from dlmesh_sdk.training_loop import accuracy, load_weights, timed, to_device


class ElasticModel:
    """The model as step functions see it: it is called and asked as the module, and knows optimizer and loss."""

    def __init__(self, module: nn.Module, optimizer: Any, loss_function: Any) -> None:
        self._module, self._optimizer, self._loss_function = module, optimizer, loss_function

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self._module(*inputs, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __reduce__(self) -> tuple[Any, ...]:
        # Saved or copied as a whole it is the module.
        return _itself, (self._module,)

    def get_optimizer(self) -> Any:
        """Its `step` is a step of all workers together; everything else is the program's own optimizer."""
        return self._optimizer

    def get_loss_function(self) -> Any:
        """The program's own."""
        return self._loss_function


def _itself(module: nn.Module) -> nn.Module:
    return module


class _SharedOptimizer:
    """The program's optimizer whose `step` first makes the gradients those of the whole batch."""

    def __init__(self, optimizer: torch.optim.Optimizer, run: ElasticRun) -> None:
        self._optimizer, self._run = optimizer, run
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget this worker's gradients."""
        self._run.worker.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        """One step of all workers."""
        loss = closure() if closure is not None else None
        self.steps += 1
        self._run.apply_gradients()
        return loss


class State:
    """The whole state of a run, in the form in which `Checkpoints` asks an engine for it."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        self.checkpoint_engine: Any = None
        self.is_first = True

    def zero_optimization_stage(self) -> int:
        """Nothing is divided."""
        return 0

    def save_checkpoint(self, folder: str, *, tag: str, client_state: dict[str, Any], save_latest: bool) -> None:
        """Hand the state to `checkpoint_engine`; the first worker's is everybody's."""
        if self.is_first:
            content = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(), **client_state}
            self.checkpoint_engine.save(content, str(Path(folder, tag, "state.pt")))

    def load_checkpoint(self, folder: str, tag: str) -> tuple[str, dict[str, Any]]:
        """Restore what `save_checkpoint` kept."""
        content = torch.load(Path(folder, tag, "state.pt"), map_location="cpu", weights_only=True)
        self.module.load_state_dict(content["module"])
        self.optimizer.load_state_dict(content["optimizer"])
        return folder, {"state": content["state"]}


class ElasticRun:
    """One worker of an elastic training. Modes say how batches are divided and how gradients become a step."""

    def __init__(self, options: FabricOptions, sizing: Sizing, gang: Gang) -> None:
        self.options, self.gang = options, gang
        on_platform = bool(os.environ.get("DLMESH_PARAMETERS"))
        self.seed = run_parameters.getSeed() if on_platform else 0
        # All workers get the same data in the same order: their parts are parts of one batch.
        self.metrics = named_metrics(options.metrics)
        self.train_data, self.test_data = options.get_datasets()
        _check(options, self.train_data)
        # By the samples alone: the number of workers may change.
        size = settled_batch(sizing.global_batch_size, len(self.train_data), tell=gang.is_first)
        self.sizing = replace(sizing, global_batch_size=size)
        self.module: nn.Module = options.model.to(gang.device)
        if weights := initial_weights(sys.argv):
            load_weights(self.module, weights)
        self.optimizer = _optimizer_of(options.optimizer, self.module)
        self.state = State(self.module, self.optimizer)
        self.state.is_first = gang.is_first
        self.train_dir = train_folder()
        if gang.is_first:
            self.train_dir.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(
            self.train_dir,
            self.checkpoint_gang,
            keep=run_parameters.getCheckpointsKept() if on_platform else run_parameters.DEFAULT_CHECKPOINTS_KEPT,
            interval_steps=run_parameters.getCheckpointInterval() if on_platform else 0,
        )
        self.step, self.resumed = self.checkpoints.load_newest(self.state)
        # In the mode ASYNC only the first worker reads it.
        self.agree()
        self.worker = self.module_that_computes()
        self.shared = _SharedOptimizer(self.optimizer, self)
        self.model = ElasticModel(self.worker, self.shared, options.loss_function)
        self.batch_size = self.step_size()
        self.per_epoch = ShardedBatches.per_epoch(len(self.train_data), self.batch_size)
        self.total = self.per_epoch * sizing.epochs
        self.monitor = PytorchMonitor(self.total) if gang.is_first else None
        self.loggers = Loggers(options, gang)
        # On every worker: they may change the optimizer.
        self.callbacks = [made(callback) for callback in options.callbacks]
        for callback in self.callbacks:
            callback.params = {"epochs": sizing.epochs, "optimizer": self.optimizer}
            callback.model = self.model
        for callback, state in zip(self.callbacks, self.resumed.get("callbacks", []), strict=False):
            if state is not None:
                callback.load_state_dict(state)

    # What a mode decides.

    @property
    def checkpoint_gang(self) -> Gang:
        """The workers that take part in writing a checkpoint."""
        return self.gang

    def module_that_computes(self) -> nn.Module:
        """The module that goes through the batches; `module` is what the optimizer changes and what is saved."""
        return self.module

    def step_size(self) -> int:
        """Samples of one step."""
        return self.sizing.global_batch_size

    def apply_gradients(self) -> None:
        """Make one step of the gradients that are in the parameters."""
        raise NotImplementedError

    def to_the_end(self) -> None:
        """Train what is left, test, write the weights; SystemExit(143) when it was asked to stop."""
        raise NotImplementedError

    # What all modes share.

    def agree(self) -> None:
        """Collective: all workers take the first one's weights."""
        if self.gang.world_size > 1:
            with torch.no_grad():
                for tensor in self.module.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def begin(self) -> None:
        """Tell callbacks and loggers."""
        self.tell("on_train_begin")
        self.loggers.began()

    def tell(self, name: str, *arguments: Any) -> None:
        """Call the method of every callback that has it."""
        for callback in self.callbacks:
            if (method := getattr(callback, name, None)) is not None:
                call(method, *arguments)

    def save(self, step: int, **state: Any) -> None:
        """Keep everything as the checkpoint of `step`."""
        kept = [callback.state_dict() if hasattr(callback, "state_dict") else None for callback in self.callbacks]
        self.checkpoints.save(self.state, step, callbacks=kept, **state)

    def collate(self, samples: list[Any]) -> Any:
        """A batch of samples."""
        return (self.options.collate or default_collate)(samples)

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state, which nobody changes meanwhile."""
        return self.optimizer.state_dict()

    def train_on(self, batch: Any, loader: Any) -> tuple[Any, Any]:
        """Gradients and a step for one batch; loss and accuracy (0 to 1) of it, numbers or tensors."""
        self.worker.train()
        data = to_device(batch, self.gang.device)
        steps = self.shared.steps
        if self.options.step_function:
            percent, loss = self.options.step_function(
                self.model, data, _percent_right, loader, self.options.function_arguments
            )
            share = percent / 100
            if self.shared.steps == steps:
                # It only computed the gradients.
                self.shared.step()
                self.shared.zero_grad()
            return loss, share
        inputs, targets = data
        self.shared.zero_grad()
        outputs = self.worker(inputs)
        loss = self.options.loss_function(outputs, targets)
        loss.backward()
        self.shared.step()
        return loss.detach(), _right(outputs.detach(), targets)

    def test(self, epoch: int, gang: Gang) -> None:
        """Loss and accuracy over the test data, which the workers of `gang` divide; reported by the first worker."""
        if self.test_data is None or not len(self.test_data):
            return
        self.worker.eval()
        size, samples = self.sizing.global_batch_size, len(self.test_data)
        with torch.no_grad():
            if self.options.test_function:
                # It says nothing about how many samples it took: all workers test all.
                batches = (to_device(batch, gang.device) for _, batch in self._test_batches(size, samples, 0, 1))
                mean = self.options.test_function(self.model, batches, self.options.function_arguments)
                values = {"loss": float(mean)}
            else:
                measures = {"loss": self.options.loss_function, "accuracy": _right, **self.metrics}
                sums = [0.0] * len(measures)
                for count, (inputs, targets) in self._test_batches(size, samples, gang.rank, gang.world_size):
                    workerkit.heartbeat()
                    inputs, targets = to_device((inputs, targets), gang.device)
                    outputs = self.worker(inputs)
                    for place, measure in enumerate(measures.values()):
                        sums[place] += float(measure(outputs, targets)) * count
                values = {name: total / samples for name, total in zip(measures, gang.sum(*sums), strict=True)}
        if self.monitor:
            own = {name: value for name, value in values.items() if name not in ("loss", "accuracy")}
            self.monitor.test(self.step, values["loss"], values.get("accuracy"), **own)
        self.loggers.tested(values, self.step, epoch)

    def _test_batches(self, size: int, samples: int, rank: int, workers: int) -> Iterator[tuple[int, Any]]:
        """How many samples, and the batch."""
        for start in range(0, samples, size):
            if mine := range(start + rank, min(start + size, samples), workers):
                yield len(mine), self.collate([self.test_data[index] for index in mine])

    def end_epoch(self, epoch: int, gang: Gang) -> None:
        """Callbacks, weights and a test after `epoch`, from 0."""
        often = self.sizing.checkpoint_epochs
        save_model = SaveModel(self, epoch, is_due=bool(often) and (epoch + 1) % often == 0)
        self.tell("on_epoch_end", epoch, save_model)
        if save_model:
            save_model()
        is_last = epoch + 1 == self.sizing.epochs
        if not is_last and self.sizing.validation_epochs and (epoch + 1) % self.sizing.validation_epochs == 0:
            self.test(epoch + 1, gang)

    def complete(self, gang: Gang) -> None:
        """The last test and the final weights."""
        self.test(self.sizing.epochs, gang)
        self.tell("on_train_end")
        self.loggers.ended()
        self.checkpoints.finish()
        if self.gang.is_first:
            if self.options.save_to_onnx:
                _write_onnx(self.worker, self.train_data, self.collate, self.train_dir / "model.onnx", self.gang)
            self.write_weights(FINAL_WEIGHTS)
        if self.monitor:
            self.monitor.close()

    def write_weights(self, name: str) -> None:
        """The weights as a plain state dict, whole or not at all; by the first worker."""
        self._write(name, dict(self.worker.state_dict()))

    def write_epoch(self, number: int) -> None:
        """The weights after epoch `number`, from 1, and the optimizer's state beside them; by the first worker."""
        # Not beside the final weights: programs look for model_epoch_final*.pth and take what they find.
        self._write(f"model_epoch_{number}_optimizer_state.pth", self.optimizer_state())
        self.write_weights(f"model_epoch_{number}.pth")

    def _write(self, name: str, state: dict[str, Any]) -> None:
        content = to_device(state, torch.device("cpu"))
        write_whole(self.train_dir / name, lambda draft: torch.save(content, draft))


class SaveModel:
    """What `on_epoch_end` is given: true when the weights of the epoch are kept, and called it keeps them."""

    def __init__(self, run: ElasticRun, epoch: int, *, is_due: bool) -> None:
        self._run, self._number, self._is_due = run, epoch + 1, is_due

    def __bool__(self) -> bool:
        return self._is_due

    def __call__(self, *_: Any) -> None:
        if self._run.gang.is_first:
            self._run.write_epoch(self._number)


class SyncRun(ElasticRun):
    """The workers make every step together, on one batch that they divide."""

    _share = 1.0

    def to_the_end(self) -> None:
        self.begin()
        while self.step < self.total:
            self._epoch(*divmod(self.step, self.per_epoch))
        self.complete(self.gang)
        # Nobody leaves before the first worker has written.
        self.gang.barrier()
        self.gang.leave()

    def apply_gradients(self) -> None:
        if self.gang.world_size > 1:
            self._average()
        self.optimizer.step()

    def _average(self) -> None:
        """One sum over all workers: gradients, and moving means and the like, weighted by the parts of the batch."""
        tensors = []
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    # Another worker's part of the batch may have needed it.
                    parameter.grad = torch.zeros_like(parameter)
                tensors.append(parameter.grad)
        tensors += [buffer for buffer in self.module.buffers() if buffer.is_floating_point()]
        if not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1).to(torch.float32) for tensor in tensors]) * self._share
        dist.all_reduce(flat)
        with torch.no_grad():
            for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def _epoch(self, epoch: int, done: int) -> None:
        gang, data = self.gang, self.train_data
        batches = ShardedBatches(
            len(data), self.batch_size, gang.rank, gang.world_size, seed=self.seed, epoch=epoch, start=done
        )
        # A worker beyond the samples of a batch takes part with the weight 0.
        shares = [len(mine) / self.batch_size for mine in batches]
        loader = DataLoader(
            data,
            batch_sampler=[mine or [0] for mine in batches],
            num_workers=min(self.sizing.loader_workers, gang.loader_workers),
            collate_fn=self.collate,
            pin_memory=gang.device.type == "cuda",
        )
        if not done:
            self.tell("on_epoch_begin", epoch)
        for batch, share in zip(timed(loader, self.monitor), shares, strict=True):
            # Of this step alone: what dropout does after a resume is what it would have done.
            torch.manual_seed(self.seed + (self.step << 10) + gang.rank)
            self._share = share
            loss, right = self.train_on(batch, loader)
            self.step += 1
            self._after_step(loss, right, epoch)

    def _after_step(self, loss: Any, right: Any, epoch: int) -> None:
        gang = self.gang
        reports = self.monitor is not None and self.monitor.is_due(self.step, self.batch_size)
        stopping, due, reports = gang.any(gang.stop_requested, self.checkpoints.due(self.step), reports)
        if reports:
            means = gang.sum(float(loss) * self._share, float(right) * self._share)
            values = dict(zip(("loss", "accuracy"), means, strict=True))
            if self.monitor:
                rate = self.optimizer.param_groups[0]["lr"]
                self.monitor.train(self.step, values["loss"], values["accuracy"], learning_rate=rate)
            self.loggers.trained(values, self.step, epoch + 1)
        if self.step % self.per_epoch == 0:
            self.end_epoch(epoch, gang)
        save = partial(self.save, self.step)
        interrupt(self.checkpoints, self.step, self.total, save, stopping=stopping, due=due)


def initial_weights(arguments: Sequence[str]) -> str:
    """The file or folder after --weights on the program's command line; empty when none is given, or an empty text.

    FileNotFoundError when it does not exist: a training that was to begin from it must not begin from nothing.
    """
    given = list(arguments)
    location = given[given.index("--weights") + 1] if "--weights" in given[:-1] else ""
    location = next((text.removeprefix("--weights=") for text in given if text.startswith("--weights=")), location)
    if location and not Path(location).exists():
        raise FileNotFoundError(f"--weights: there is no file or folder {location}")
    return location


def _check(options: FabricOptions, train_data: Any) -> None:
    """TypeError or ValueError for what would fail in the middle, or train nothing."""
    has_own_functions = options.step_function and options.test_function
    if not callable(options.loss_function) and not has_own_functions:
        raise TypeError(f"FabricModel: loss_function is {options.loss_function!r}; it has to be a function")
    if not len(train_data):
        raise ValueError("FabricModel: the training data of get_datasets is empty")


def _optimizer_of(given: Any, module: nn.Module) -> torch.optim.Optimizer:
    if isinstance(given, torch.optim.Optimizer):
        return given
    if callable(given):
        made_from_class = given(module.parameters())
        if isinstance(made_from_class, torch.optim.Optimizer):
            return made_from_class
    raise TypeError(f"FabricModel: optimizer is {given!r}; it has to be a torch optimizer, or make one of parameters")


def named_metrics(metrics: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """Functions of (outputs, targets) by their names; TypeError names what is none. Accuracy is there in any case."""
    if not isinstance(metrics, Mapping):
        several = metrics if isinstance(metrics, list | tuple) else [metrics]
        metrics = {getattr(one, "__name__", type(one).__name__) if callable(one) else one: one for one in several}
    named: dict[str, Callable[[Any, Any], Any]] = {}
    for name, one in metrics.items():
        if isinstance(one, str) and one in ("acc", "accuracy"):
            continue
        if not callable(one) or name == "loss":
            raise TypeError(f"metrics: {name}={one!r}; allowed for torch: functions of (outputs, targets), 'accuracy'")
        named[str(name)] = one
    return named


def _right(outputs: Any, targets: Any) -> Tensor:
    """Fraction of right classes where outputs are scores [n, classes] and targets indices [n], else 0."""
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.ndim == 2 and targets.ndim == 1:
        return accuracy(outputs, targets)
    return torch.zeros(())


def _percent_right(outputs: Any, targets: Any) -> float:
    return 100 * float(_right(outputs, targets))


def _write_onnx(module: nn.Module, data: Any, collate: Any, file: Path, gang: Gang) -> None:
    """ONNX is an addition: what a model cannot be exported for is said, and its weights are there all the same."""
    if importlib.util.find_spec("onnx") is None:
        say(f"{file.name} was not written: it needs the package onnx (pip install onnx)")
        return
    inputs, _ = to_device(collate([data[0]]), gang.device)
    names: dict[str, Any] = {}
    if isinstance(inputs, Tensor):
        # Any number of samples.
        names = {"input_names": ["input"], "output_names": ["output"]}
        names["dynamic_axes"] = {"input": {0: "samples"}, "output": {0: "samples"}}
    try:
        write_whole(file, lambda draft: torch.onnx.export(module.eval(), (inputs,), str(draft), dynamo=False, **names))
    except Exception as error:
        say(f"{file.name} was not written: {error}")
