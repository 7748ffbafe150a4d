"""Trains the model of model.py on the platform's data, on one or many workers."""

import argparse
import functools

import keras
import tf_parameter_mgr as parameters
from dlmesh_sdk import run_parameters
from dlmesh_sdk.gang import join
from dlmesh_sdk.keras_training import KerasTask, train
from dlmesh_sdk.record_datasets import open_records, read_labels
from model import build_model, preprocess


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", required=True, help="where checkpoints and weights are written")
    parser.add_argument("--weights", default="", help="folder or file with initial weights")
    arguments, _ = parser.parse_known_args()

    gang = join(parameters.getSeed(), computes=False)
    keras.utils.set_random_seed(parameters.getSeed())
    train_data, test_data = run_parameters.data_path("train"), run_parameters.data_path("test")
    labels = read_labels(train_data)
    channels, height, width = open_records(train_data, preprocess).shape
    to_input = functools.partial(preprocess, channels=channels, height=height, width=width)
    model = build_model(len(labels), channels, height, width)
    model.compile(
        optimizer=parameters.getOptimizer(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    task = KerasTask(
        model=model,
        train_data=open_records(train_data, to_input),
        test_data=open_records(test_data, to_input),
        serving={"labels": labels, "channels": channels, "height": height, "width": width},
    )
    train(task, gang, arguments.train_dir, arguments.weights)


if __name__ == "__main__":
    main()
