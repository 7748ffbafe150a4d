"""Trains the model of model.py on the platform's data with DeepSpeed, on one or many workers."""

import argparse
import functools

import pth_parameter_mgr as parameters
import torch
from dlmesh_sdk.gang import join
from dlmesh_sdk.record_datasets import open_records
from dlmesh_sdk.training_loop import Task, train
from dlmesh_sdk.wrong_data import WrongDataError
from model import build_model, preprocess

# The scale of the vectors is judged by so many of them.
STANDARD_SAMPLES = 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", required=True, help="where checkpoints and weights are written")
    parser.add_argument("--weights", default="", help="folder or file with initial weights")
    arguments, _ = parser.parse_known_args()

    gang = join(parameters.getSeed())
    channels, height, width = open_records(parameters.getTrainData(), preprocess).shape
    to_input = functools.partial(preprocess, channels=channels, height=height, width=width)
    train_data = open_records(parameters.getTrainData(), to_input)
    mean, deviation = standard(train_data)
    model = build_model(len(mean), channels, height, width)
    model.mean.copy_(mean)
    model.deviation.copy_(deviation)
    # Another object than the model's: those of the model move to the device and may become smaller numbers.
    scale = deviation.to(gang.device)

    def loss(outputs, targets):
        return ((outputs.float() - targets) / scale).square().mean()

    task = Task(
        model=model,
        train_data=train_data,
        test_data=open_records(parameters.getTestData(), to_input),
        loss=loss,
        metrics={"mae": lambda outputs, targets: (outputs.float() - targets).abs().mean()},
        serving={"task": "vector", "length": len(mean), "channels": channels, "height": height, "width": width},
    )
    train(task, gang, arguments.train_dir, arguments.weights)


def standard(dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the vectors, by numbers spread over the dataset; 1 where all are alike."""
    step = max(1, len(dataset) // STANDARD_SAMPLES)
    vectors = [dataset[index][1] for index in range(0, len(dataset), step)]
    if not isinstance(vectors[0], torch.Tensor):
        raise WrongDataError("vectors are needed, as datasets of the type IMGTOVECTOR have them", dataset.path)
    deviation, mean = torch.std_mean(torch.stack(vectors), 0, correction=0)
    return mean, torch.where(deviation > 0, deviation, 1.0)


if __name__ == "__main__":
    main()
