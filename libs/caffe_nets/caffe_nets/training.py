"""Training as the solver says, with DeepSpeed, on one or many workers.

Caffe counts iterations. batch_size is that of all workers together, as for every model of the platform; each takes its
share, and a loss is normalised over the share. A run that was interrupted goes on from its newest checkpoint, sample
for sample; SIGTERM writes one and ends the run with code 143.
"""

from __future__ import annotations

import functools
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workerkit
from dlmesh_sdk import caffe_solvers, deepspeed_config, run_parameters
from dlmesh_sdk import pth_parameters as parameters
from dlmesh_sdk.checkpoints import FINAL_WEIGHTS, Checkpoints
from dlmesh_sdk.gang import Gang, join
from dlmesh_sdk.interruptions import interrupt
from dlmesh_sdk.monitor import PytorchMonitor
from dlmesh_sdk.program_logs import say
from dlmesh_sdk.record_datasets import open_records, read_labels
from dlmesh_sdk.sharded_batches import ShardedBatches, settled_batch
from dlmesh_sdk.training_loop import timed
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from caffe_nets.folder import Folder, read_folder
from caffe_nets.model import CaffeModel
from caffe_nets.pictures import MEAN_FILE, read_mean, to_pixels
from caffe_nets.schema import CaffeError
from caffe_nets.solver import solver_settings
from caffe_nets.weights import load_initial, write_caffemodel

CAFFEMODEL = "model_final.caffemodel"


def train(folder: Path, train_dir: Path, weights: str = "") -> None:
    """Run this worker's part of the training of the prototxt files in `folder` to its end.

    `train_dir` receives `model_epoch_N.pth` after N snapshots, `model_epoch_final.pth`, the same as
    `model_final.caffemodel` where they fit into one, serving.json and resumable checkpoints. CaffeError says what is
    wrong with the folder.
    """
    files = read_folder(folder)
    seed = parameters.getSeed() or max(0, int(files.solver.random_seed))
    gang = join(seed)
    _Run(files, folder, gang, train_dir, weights, seed).to_the_end()


class _Run:
    def __init__(self, files: Folder, folder: Path, gang: Gang, train_dir: Path, weights: str, seed: int) -> None:
        import deepspeed  # not before the gang has chosen the device: it looks at the machine when it is imported

        self.gang, self.train_dir, self.seed, self.solver = gang, train_dir, seed, files.solver
        path = Path(parameters.getTrainData())
        self.labels = read_labels(path)
        shape = open_records(path, np.asarray).shape
        mean_file = path.parent / MEAN_FILE
        mean = read_mean(mean_file, shape) if mean_file.is_file() else None
        self.model = CaffeModel(files, shape, len(self.labels), mean)
        channels, height, width = shape
        to_input = functools.partial(to_pixels, channels=channels, height=height, width=width)
        self.train_data = open_records(path, to_input)
        self.test_data = open_records(parameters.getTestData(), to_input)
        if weights:
            loaded = load_initial(self.model, weights)
            if gang.is_first:
                say(f"weights were loaded for the layers {', '.join(loaded)}")
        self.model.to(gang.device)

        self.settings = solver_settings(self.solver, run_parameters.hyperparameters())
        self.total = int(self.settings["max_iter"])
        if self.total < 1:
            raise CaffeError(f"the solver's max_iter is {self.total}; it must be 1 or more")
        try:
            caffe_solvers.learning_rate(self.settings, 0)
        except ValueError as error:
            raise CaffeError(f"the solver: {error}") from error
        self.iter_size = max(1, int(self.settings["iter_size"]))
        self.batch_size = settled_batch(
            self._batch_size("train"), len(self.train_data), multiple_of=gang.world_size, tell=gang.is_first
        )
        config = self._config(folder)
        groups = self.model.parameter_groups()
        if not groups:
            raise CaffeError("the net learns nothing: no layer has weights whose lr_mult is not 0")
        # Gradients come to the optimizer as the mean over iter_size batches, and clipped: both need all of them.
        settings = {**self.settings, "iter_size": 1, "clip_gradients": -1.0}
        self.optimizer = caffe_solvers.build_optimizer(groups, settings)
        self.engine, *_ = deepspeed.initialize(model=self.model, optimizer=self.optimizer, config=config)
        self.checkpoints = Checkpoints(
            train_dir, gang, keep=parameters.getCheckpointsKept(), interval_steps=parameters.getCheckpointInterval()
        )
        if gang.is_first:
            (train_dir / "serving.json").write_text(json.dumps(self._serving(height, width)), encoding="utf-8")
        self.step, _ = self.checkpoints.load_newest(self.engine)
        self.losses: deque[Tensor] = deque(maxlen=max(1, self.solver.average_loss))
        self.monitor = PytorchMonitor(self.total) if gang.is_first else None

    def to_the_end(self) -> None:
        """All iterations that are left, the last test, the final weights in both formats."""
        interval = self._test_interval()
        batches = self._batches()
        while self.step < self.total:
            self._iterate(batches)
            if interval and self.step % interval == 0 and self.step < self.total:
                self._test(self._test_batches())
            if self.solver.snapshot > 0 and self.step % self.solver.snapshot == 0:
                number = self.step // self.solver.snapshot
                self.gang.average(self.model.buffers())
                self.checkpoints.write_weights(self.engine, f"model_epoch_{number}.pth")
            stopping, due = self.gang.any(self.gang.stop_requested, self.checkpoints.due(self.step))
            interrupt(self.checkpoints, self.step, self.total, self._save, stopping=stopping, due=due)
        self._test()
        self._write_final()
        if self.monitor:
            self.monitor.close()
        self.gang.leave()

    def _save(self) -> None:
        self.gang.average(self.model.buffers())
        self.checkpoints.save(self.engine, self.step)

    def _iterate(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        rate = caffe_solvers.learning_rate(self.settings, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.engine.train()
        total, hits = torch.zeros(()), torch.zeros(())
        for part in range(self.iter_size):
            pixels, labels = next(batches)
            # Of this step alone: what dropout and crops do after a resume is what they would have done.
            place = (self.step * self.iter_size + part << 10) + self.gang.rank
            torch.manual_seed(self.seed + place)
            images = self.model.train_transform(pixels, torch.Generator().manual_seed(self.seed + place))
            labels = labels.to(self.gang.device)
            loss, logits = self.engine(images.to(self.gang.device), labels)
            self.engine.backward(loss)
            self.engine.step()
            total, hits = total + loss.detach().cpu(), hits + _hits(logits.detach(), labels) / len(labels)
        self.step += 1
        self.losses.append(total / self.iter_size)
        mean_loss = sum(self.losses) / len(self.losses)
        if self.monitor:
            if self.solver.display > 0 and self.step % self.solver.display == 0:
                say(f"Iteration {self.step}, loss = {float(mean_loss):.6g}, lr = {rate:.6g}")
            accuracy = hits / self.iter_size
            samples = self.batch_size * self.iter_size
            self.monitor.train(self.step, mean_loss, accuracy, learning_rate=rate, samples=samples)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's batches of pixels and labels, from where the training stands, without end."""
        gang, samples = self.gang, len(self.train_data)
        per_epoch = ShardedBatches.per_epoch(samples, self.batch_size)
        epoch, done = divmod(self.step * self.iter_size, per_epoch)
        while True:
            sampler = ShardedBatches(
                samples, self.batch_size, gang.rank, gang.world_size, seed=self.seed, epoch=epoch, start=done
            )
            loader = DataLoader(self.train_data, batch_sampler=sampler, num_workers=gang.loader_workers)
            yield from timed(loader, self.monitor)
            epoch, done = epoch + 1, 0

    @torch.no_grad()
    def _test(self, max_batches: int | None = None) -> None:
        """Report loss and accuracy on the first `max_batches` batches of the test data (all of them when None)."""
        self.engine.eval()
        # Moving means of batch normalization are of a worker's own shares until then.
        self.gang.average(self.model.buffers())
        gang, batch_size, data = self.gang, self._batch_size("test"), self.test_data
        samples = len(data) if max_batches is None else min(len(data), max_batches * batch_size)
        loss = hits = 0.0
        for start in range(0, samples, batch_size):
            workerkit.heartbeat()
            mine = range(start + gang.rank, min(start + batch_size, samples), gang.world_size)
            # A worker without a sample in the last batch still takes part: with ZeRO 3 a forward pass is collective.
            pixels, labels = default_collate([data[index] for index in mine or [start]])
            images, labels = self.model.test_transform(pixels).to(gang.device), labels.to(gang.device)
            batch_loss, logits = self.engine(images, labels)
            if mine:
                loss += float(batch_loss) * len(mine)
                hits += float(_hits(logits, labels))
        loss, hits = gang.sum(loss, hits)
        if self.monitor:
            self.monitor.test(self.step, loss / samples, hits / samples)

    def _write_final(self) -> None:
        self.checkpoints.write_weights(self.engine, FINAL_WEIGHTS)
        if self.gang.is_first:
            # Of the written file: with ZeRO 3 no worker has all the weights.
            state = torch.load(self.train_dir / FINAL_WEIGHTS, map_location="cpu", weights_only=True)
            try:
                write_caffemodel(self.model, state, self.train_dir / CAFFEMODEL, self.model.folder.train_net.name)
            except CaffeError as error:
                # The same weights are in the file above; nothing is lost that would be worth the training.
                say(f"{CAFFEMODEL} was not written: {error}. The weights are in {FINAL_WEIGHTS}")

    def _config(self, folder: Path) -> dict[str, Any]:
        config = deepspeed_config.build(
            folder / "ds_config.json", batch_size=self.batch_size, world_size=self.gang.world_size
        )
        config["gradient_accumulation_steps"] = self.iter_size
        config["train_batch_size"] *= self.iter_size
        if self.settings["clip_gradients"] > 0:
            # Caffe clips the sum over iter_size, before it takes the mean.
            config["gradient_clipping"] = self.settings["clip_gradients"] / self.iter_size
        return config

    def _batch_size(self, phase: str) -> int:
        """The model's batch size when it has one, else that of the data layer."""
        given = run_parameters.parameters()
        own = given.get("batch_size") if phase == "train" else given.get("test_batch_size")
        planned = self.model.plans[phase].batch_size
        return int(own or planned or run_parameters.getTrainBatchSize())

    def _test_interval(self) -> int:
        """The training's test interval, unless it is the default and the solver has one."""
        given = parameters.getTestInterval()
        return int(self.solver.test_interval or given) if given == run_parameters.DEFAULT_TEST_INTERVAL else given

    def _test_batches(self) -> int:
        given = parameters.getTestIteration()
        own = self.solver.test_iter[0] if self.solver.test_iter else 0
        return int(own or given) if given == run_parameters.DEFAULT_TEST_ITERATION else given

    def _serving(self, height: int, width: int) -> dict[str, Any]:
        channels, input_height, input_width = self.model.input_shape
        return {
            "labels": self.labels,
            "channels": channels,
            "height": input_height,
            "width": input_width,
            # Of the pictures before they are cropped.
            "picture_height": height,
            "picture_width": width,
            "framework": "Caffe",
        }


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of `labels` [n] have the highest of their scores; 0 where the net does not classify."""
    if logits.dim() < 2 or logits[0].numel() != logits.shape[1]:
        return torch.zeros(())
    return (logits.flatten(1).argmax(1) == labels).sum().cpu()
