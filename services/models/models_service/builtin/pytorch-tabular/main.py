"""Trains the model of model.py on the rows of a CSV dataset with DeepSpeed, on one or many workers."""

import argparse

import pth_parameter_mgr as parameters
from dlmesh_sdk.gang import join
from dlmesh_sdk.table_datasets import Table, TableEncoding
from dlmesh_sdk.table_prediction import encoding_of, prediction_task
from dlmesh_sdk.training_loop import train
from model import build_model

# The column to predict; empty: the last one.
TARGET = ""
# classification or regression; empty: text and up to 20 different whole numbers are classes.
KIND = ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", required=True, help="where checkpoints and weights are written")
    parser.add_argument("--weights", default="", help="folder or file with initial weights")
    arguments, _ = parser.parse_known_args()

    gang = join(parameters.getSeed())
    table = Table(parameters.getTrainData())
    encoding = encoding_of(arguments.weights, TableEncoding, TARGET) or TableEncoding.fit(table, TARGET, KIND)
    train(prediction_task(table, encoding, build_model), gang, arguments.train_dir, arguments.weights)


if __name__ == "__main__":
    main()
