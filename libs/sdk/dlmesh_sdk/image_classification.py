"""What the PyTorch templates for image classification share: task and predictions.

A template brings a model.py with `build_model(classes, channels, height, width)`, a torch module of logits, and
`preprocess(image, channels, height, width)`, a PIL image as float32 [channels, height, width].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import inference_helper
import numpy as np
from torch import nn
from torch.utils.data import DataLoader

from dlmesh_sdk import pth_parameters as parameters
from dlmesh_sdk.image_files import open_images
from dlmesh_sdk.record_datasets import open_records, read_labels
from dlmesh_sdk.served.classification import ServedClassification
from dlmesh_sdk.served.inference import Predictor
from dlmesh_sdk.training_loop import Task, accuracy, cross_entropy, read_serving

BATCH_SIZE = 256


def classification_task(build_model: Callable[..., nn.Module], preprocess: Callable[..., np.ndarray]) -> Task:
    """Learning the labels of the model's dataset, whose records are all of the size of the first one."""
    records = parameters.getTrainData()
    labels = read_labels(records)
    channels, height, width = open_records(records, preprocess).shape
    shape = {"channels": channels, "height": height, "width": width}
    to_input = functools.partial(preprocess, **shape)
    return Task(
        model=build_model(len(labels), **shape),
        train_data=open_records(records, to_input),
        test_data=open_records(parameters.getTestData(), to_input),
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        serving={"task": "classification", "labels": labels, **shape},
    )


def classify(build_model: Callable[..., nn.Module], preprocess: Callable[..., np.ndarray]) -> None:
    """The whole inference program: classify a folder of pictures, or a split of a dataset, as the command line says."""
    arguments = inference_helper.parse_arguments("records of a split, or a folder of pictures")

    program = SimpleNamespace(build_model=build_model, preprocess=preprocess)
    served = ServedClassification(read_serving(arguments.model), program)
    predict = Predictor(served, arguments.model)
    names, samples = open_images(arguments.input_dir, served.to_input)
    probabilities: list[list[float]] = []
    truth: list[int] = []
    for images, labels in DataLoader(samples, batch_size=BATCH_SIZE):
        probabilities += predict({"INPUT__0": images})["OUTPUT__0"].tolist()
        truth += labels.tolist()
    inference_helper.writeClassificationResult(
        arguments.output_dir / arguments.output_file,
        names,
        probabilities,
        label_file=arguments.label_file or served.labels,
        ground_truth=truth if arguments.validate else None,
        prob_thresh=arguments.prob_thresh,
    )
