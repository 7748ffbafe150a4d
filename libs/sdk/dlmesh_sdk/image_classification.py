"""What the PyTorch templates for image classification share: task and predictions.

A template brings a model.py with `build_model(classes, channels, height, width)`, a torch module of logits, and
`preprocess(image, channels, height, width)`, a PIL image as float32 [channels, height, width].
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

import inference_helper
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dlmesh_sdk import pth_parameters as parameters
from dlmesh_sdk.image_files import open_images
from dlmesh_sdk.record_datasets import open_records, read_labels
from dlmesh_sdk.training_loop import Task, accuracy, cross_entropy, find_weights

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
        serving={"labels": labels, **shape},
    )


def classify(build_model: Callable[..., nn.Module], preprocess: Callable[..., np.ndarray]) -> None:
    """The whole inference program: classify a folder of pictures, or a split of a dataset, as the command line says."""
    arguments = inference_helper.parse_arguments("records of a split, or a folder of pictures")

    folder = arguments.model
    serving = json.loads((folder / "serving.json").read_text())
    shape = {side: serving[side] for side in ("channels", "height", "width")}
    model = build_model(len(serving["labels"]), **shape)
    model.load_state_dict(torch.load(find_weights(folder), map_location="cpu", weights_only=True))
    names, samples = open_images(arguments.input_dir, functools.partial(preprocess, **shape))
    probabilities, truth = predict(model, samples)
    inference_helper.writeClassificationResult(
        arguments.output_dir / arguments.output_file,
        names,
        probabilities,
        label_file=arguments.label_file or serving["labels"],
        ground_truth=truth if arguments.validate else None,
        prob_thresh=arguments.prob_thresh,
    )


@torch.no_grad()
def predict(model: nn.Module, samples: Dataset[tuple[Tensor, int]]) -> tuple[list[list[float]], list[int]]:
    """The probability of each class for every sample, and the labels of the samples."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    probabilities: list[list[float]] = []
    truth: list[int] = []
    for images, labels in DataLoader(samples, batch_size=BATCH_SIZE):
        probabilities += torch.softmax(model(images.to(device)).float(), 1).tolist()
        truth += labels.tolist()
    return probabilities, truth
