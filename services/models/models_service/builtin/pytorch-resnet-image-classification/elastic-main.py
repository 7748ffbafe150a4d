"""Trains the model of model.py on a number of workers that changes while it runs."""

import argparse
import os

import pth_parameter_mgr as parameters
from callbacks import LearningRatePolicy
from dlmesh_sdk.image_classification import classification_task
from dlmesh_sdk.training_loop import write_serving
from fabric_model import FabricModel
from model import build_model, preprocess


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", required=True, help="where checkpoints and weights are written")
    arguments, _ = parser.parse_known_args()
    task = classification_task(build_model, preprocess)
    optimizer = parameters.getOptimizer(task.model)
    if os.environ.get("RANK", "0") == "0":
        write_serving(arguments.train_dir, task.serving)
    fabric = FabricModel(
        task.model,
        lambda: (task.train_data, task.test_data),
        task.loss,
        optimizer,
        user_callback=[LearningRatePolicy(optimizer)],
    )
    fabric.train(parameters.getEpoch(), effective_batch_size=parameters.getTrainBatchSize())


if __name__ == "__main__":
    main()
