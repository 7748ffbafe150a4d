"""Trains the model of model.py on a number of workers that changes while it runs."""

import argparse
import functools
import os

import pth_parameter_mgr as parameters
from callbacks import LearningRatePolicy
from fabric_model import FabricModel
from model import build_model, preprocess
from record_datasets import open_records, read_labels
from training_loop import cross_entropy, write_serving


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", required=True, help="where checkpoints and weights are written")
    arguments, _ = parser.parse_known_args()
    labels = read_labels(parameters.getTrainData())
    channels, height, width = open_records(parameters.getTrainData(), preprocess).shape
    to_input = functools.partial(preprocess, channels=channels, height=height, width=width)

    def get_datasets():
        return (
            open_records(parameters.getTrainData(), to_input),
            open_records(parameters.getTestData(), to_input),
        )

    model = build_model(len(labels), channels, height, width)
    optimizer = parameters.getOptimizer(model)
    if os.environ.get("RANK", "0") == "0":
        serving = {"labels": labels, "channels": channels, "height": height, "width": width}
        write_serving(arguments.train_dir, serving)
    fabric = FabricModel(model, get_datasets, cross_entropy, optimizer, user_callback=[LearningRatePolicy(optimizer)])
    fabric.train(parameters.getEpoch(), effective_batch_size=parameters.getTrainBatchSize())


if __name__ == "__main__":
    main()
