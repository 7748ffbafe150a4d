"""Trains the model of model.py on the platform's data with DeepSpeed, on one or many workers.

A run that was interrupted continues from its newest complete checkpoint; SIGTERM writes one and ends the run.
"""

import argparse
import functools
import json
import sys
from pathlib import Path

import deepspeed_config
import pth_parameter_mgr as parameters
import torch
from checkpoints import Checkpoints
from gang import Gang, join
from model import build_model, preprocess
from monitor_pth import PytorchMonitor
from record_datasets import open_records, read_labels
from sharded_batches import ShardedBatches
from torch import nn
from torch.utils.data import DataLoader, default_collate


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", required=True, help="where checkpoints and weights are written")
    parser.add_argument("--weights", default="", help="folder or file with initial weights")
    arguments, _ = parser.parse_known_args()

    gang = join(parameters.getSeed())
    import deepspeed  # after join: it looks at the machine when it is imported

    labels = read_labels(parameters.getTrainData())
    channels, height, width = open_records(parameters.getTrainData(), preprocess).shape
    to_input = functools.partial(preprocess, channels=channels, height=height, width=width)
    train_data = open_records(parameters.getTrainData(), to_input)
    test_data = open_records(parameters.getTestData(), to_input)

    model = build_model(len(labels), channels, height, width)
    if arguments.weights:
        model.load_state_dict(torch.load(find_weights(arguments.weights), map_location="cpu", weights_only=True))
    model.to(gang.device)
    optimizer = parameters.getOptimizer(model)
    scheduler = parameters.getLearningRate(optimizer)
    batch_size = deepspeed_config.global_batch_size(parameters.getTrainBatchSize(), gang.world_size)
    config = deepspeed_config.build("ds_config.json", batch_size=batch_size, world_size=gang.world_size)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

    checkpoints = Checkpoints(arguments.train_dir, gang)
    if gang.is_first:
        serving = {"labels": labels, "channels": channels, "height": height, "width": width, "framework": "PyTorch"}
        (Path(arguments.train_dir) / "serving.json").write_text(json.dumps(serving))
    step, state = checkpoints.load_newest(engine)
    if state and scheduler:
        scheduler.load_state_dict(state["scheduler"])
    per_epoch = ShardedBatches.per_epoch(len(train_data), batch_size)
    total = per_epoch * parameters.getEpoch()
    monitor = PytorchMonitor(total) if gang.is_first else None

    while step < total:
        epoch, done = divmod(step, per_epoch)
        batches = ShardedBatches(
            len(train_data), batch_size, gang.rank, gang.world_size, seed=parameters.getSeed(), epoch=epoch, start=done
        )
        for images, targets in DataLoader(train_data, batch_sampler=batches, num_workers=gang.loader_workers):
            targets = targets.to(gang.device)
            engine.train()
            outputs = engine(images.to(gang.device))
            loss = nn.functional.cross_entropy(outputs.float(), targets)
            engine.backward(loss)
            engine.step()
            step += 1
            if monitor:
                monitor.train(step, loss, (outputs.argmax(1) == targets).float().mean())
            if step % parameters.getTestInterval() == 0 and step < total:
                evaluate(engine, gang, test_data, monitor, step, parameters.getTestIteration())
            if step % per_epoch == 0:
                end_epoch(scheduler, gang, loss)
                checkpoints.write_weights(engine, f"model_epoch_{epoch + 1}.pth")
            stopping, due = gang.any(gang.stop_requested, checkpoints.due())
            if stopping or due:
                checkpoints.save(engine, step, scheduler=scheduler.state_dict() if scheduler else None)
            if stopping:
                print(f"Stopped after iteration {step} of {total}", flush=True)
                sys.exit(143)

    evaluate(engine, gang, test_data, monitor, step)
    checkpoints.write_weights(engine, "model_epoch_final.pth")
    if monitor:
        monitor.close()
    gang.leave()


def end_epoch(scheduler, gang: Gang, loss: torch.Tensor) -> None:
    """Step the learning rate; a plateau is judged by the mean loss of all workers."""
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(gang.sum(loss.item())[0] / gang.world_size)
    elif scheduler:
        scheduler.step()


@torch.no_grad()
def evaluate(engine, gang: Gang, dataset, monitor, step: int, max_batches: int | None = None) -> None:
    """Report loss and accuracy on the first `max_batches` batches of the test data (all of them when None)."""
    engine.eval()
    batch_size = parameters.getTestBatchSize()
    samples = len(dataset) if max_batches is None else min(len(dataset), max_batches * batch_size)
    loss = hits = 0.0
    for start in range(0, samples, batch_size):
        mine = range(start + gang.rank, min(start + batch_size, samples), gang.world_size)
        # A worker without a sample in the last batch still takes part: with ZeRO 3 a forward pass is collective.
        images, targets = default_collate([dataset[index] for index in mine or [start]])
        outputs = engine(images.to(gang.device)).float().cpu()
        if mine:
            loss += nn.functional.cross_entropy(outputs, targets, reduction="sum").item()
            hits += (outputs.argmax(1) == targets).sum().item()
    loss, hits = gang.sum(loss, hits)
    if monitor:
        monitor.test(step, loss / samples, hits / samples)


def find_weights(location: str) -> Path:
    """The file itself, or the final (else the newest) weights in a folder."""
    path = Path(location)
    if path.is_file():
        return path
    files = sorted(path.glob("model_epoch_final*.pth")) or sorted(path.glob("*.pth"), key=lambda f: f.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"--weights: there is no .pth file in {path}")
    return files[-1]


if __name__ == "__main__":
    main()
