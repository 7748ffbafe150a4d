"""Trains the model of model.py on the platform's data with DeepSpeed, on one or many workers."""

import argparse
import functools

import pth_parameter_mgr as parameters
from gang import join
from model import build_model, preprocess
from record_datasets import open_records, read_labels
from training_loop import Task, accuracy, cross_entropy, train


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", required=True, help="where checkpoints and weights are written")
    parser.add_argument("--weights", default="", help="folder or file with initial weights")
    arguments, _ = parser.parse_known_args()

    gang = join(parameters.getSeed())
    labels = read_labels(parameters.getTrainData())
    channels, height, width = open_records(parameters.getTrainData(), preprocess).shape
    to_input = functools.partial(preprocess, channels=channels, height=height, width=width)
    task = Task(
        model=build_model(len(labels), channels, height, width),
        train_data=open_records(parameters.getTrainData(), to_input),
        test_data=open_records(parameters.getTestData(), to_input),
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        serving={"labels": labels, "channels": channels, "height": height, "width": width},
    )
    train(task, gang, arguments.train_dir, arguments.weights)


if __name__ == "__main__":
    main()
