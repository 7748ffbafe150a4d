"""Trains the model of model.py on the texts of a CSV dataset with DeepSpeed, on one or many workers."""

import argparse

import pth_parameter_mgr as parameters
from dlmesh_sdk.gang import join
from dlmesh_sdk.table_datasets import Table
from dlmesh_sdk.table_prediction import encoding_of, prediction_task
from dlmesh_sdk.text_encoding import TextEncoding
from dlmesh_sdk.training_loop import train
from model import build_model

# The column of labels; empty: the last one.
TARGET = ""
# The column of texts; empty: the one with the longest texts.
TEXT = ""
# Words, marks and spelled characters of a text; what follows is not read.
LENGTH = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", required=True, help="where checkpoints and weights are written")
    parser.add_argument("--weights", default="", help="folder or file with initial weights")
    arguments, _ = parser.parse_known_args()

    gang = join(parameters.getSeed())
    table = Table(parameters.getTrainData())
    encoding = encoding_of(arguments.weights, TextEncoding, TARGET) or TextEncoding.fit(table, TARGET, TEXT, LENGTH)
    train(prediction_task(table, encoding, build_model), gang, arguments.train_dir, arguments.weights)


if __name__ == "__main__":
    main()
