"""Trains the model of model.py on a number of workers that changes while it runs."""

import argparse
import functools
import os

import keras
import tf_parameter_mgr as parameters
from dlmesh_sdk import run_parameters
from dlmesh_sdk.keras_training import write_serving
from dlmesh_sdk.record_datasets import open_records, read_labels
from fabric_model import FabricModel
from model import build_model, preprocess


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", required=True, help="where checkpoints and weights are written")
    arguments, _ = parser.parse_known_args()
    train_data, test_data = run_parameters.data_path("train"), run_parameters.data_path("test")
    labels = read_labels(train_data)
    channels, height, width = open_records(train_data, preprocess).shape
    shape = {"channels": channels, "height": height, "width": width}
    to_input = functools.partial(preprocess, **shape)

    def get_datasets():
        return open_records(train_data, to_input), open_records(test_data, to_input)

    if os.environ.get("RANK", "0") == "0":
        write_serving(arguments.train_dir, {"labels": labels, **shape})
    keras.utils.set_random_seed(parameters.getSeed())
    model = build_model(len(labels), **shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fabric = FabricModel(model, get_datasets, loss, parameters.getOptimizer())
    fabric.train(parameters.getEpoch(), effective_batch_size=parameters.getTrainBatchSize())


if __name__ == "__main__":
    main()
