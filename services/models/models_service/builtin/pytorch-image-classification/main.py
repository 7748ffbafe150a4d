"""Trains the model of model.py on the platform's data with DeepSpeed, on one or many workers."""

import argparse

import pth_parameter_mgr as parameters
from dlmesh_sdk.gang import join
from dlmesh_sdk.image_classification import classification_task
from dlmesh_sdk.training_loop import train
from model import build_model, preprocess


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", required=True, help="where checkpoints and weights are written")
    parser.add_argument("--weights", default="", help="folder or file with initial weights")
    arguments, _ = parser.parse_known_args()

    gang = join(parameters.getSeed())
    train(classification_task(build_model, preprocess), gang, arguments.train_dir, arguments.weights)


if __name__ == "__main__":
    main()
