"""Trains the detector of model.py on the platform's data with DeepSpeed, on one or many workers."""

import argparse

import pth_parameter_mgr as parameters
from dlmesh_sdk.detection_datasets import DetectionDataset, collate
from dlmesh_sdk.gang import join
from dlmesh_sdk.record_datasets import read_labels
from dlmesh_sdk.training_loop import Task, train
from model import HEIGHT, WIDTH, build_model, detection_loss, preprocess


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", required=True, help="where checkpoints and weights are written")
    parser.add_argument("--weights", default="", help="folder or file with initial weights")
    arguments, _ = parser.parse_known_args()

    gang = join(parameters.getSeed())
    labels = read_labels(parameters.getTrainData())
    task = Task(
        model=build_model(len(labels)),
        train_data=DetectionDataset(parameters.getTrainData(), labels, preprocess),
        test_data=DetectionDataset(parameters.getTestData(), labels, preprocess),
        loss=detection_loss,
        serving={"task": "detection", "labels": labels, "channels": 3, "height": HEIGHT, "width": WIDTH},
        collate=collate,
    )
    train(task, gang, arguments.train_dir, arguments.weights)


if __name__ == "__main__":
    main()
