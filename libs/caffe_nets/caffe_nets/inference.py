"""Classifying a split of a dataset, or a folder of pictures, with trained weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import inference_helper
import torch
from dlmesh_sdk.image_files import open_images
from torch.utils.data import DataLoader

from caffe_nets.folder import read_folder
from caffe_nets.model import CaffeModel, placeholder_mean
from caffe_nets.pictures import to_pixels

BATCH_SIZE = 256


def infer(
    folder: Path,
    model: Path,
    input_dir: Path,
    output_file: Path,
    threshold: float | str = 0.0,
    validate: bool = True,
    label_file: str = "",
) -> None:
    """Write the probabilities of what is in `input_dir` to `output_file`, with the truth when `validate`.

    `model` holds model_epoch_final.pth and serving.json of a training of the prototxt files in `folder`. The net is the
    one for inference, else that of the test phase with a softmax on what goes into its loss.
    """
    serving = json.loads((model / "serving.json").read_text(encoding="utf-8"))
    shape = serving["channels"], serving["picture_height"], serving["picture_width"]
    files = read_folder(folder)
    net = CaffeModel(files, shape, len(serving["labels"]), placeholder_mean(files, shape))
    net.load_state_dict(torch.load(model / "model_epoch_final.pth", map_location="cpu", weights_only=True))
    net.takes_pixels = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net.to(device).eval()
    channels, height, width = shape
    names, samples = open_images(input_dir, functools.partial(to_pixels, channels=channels, height=height, width=width))
    rows, columns = net.test_transform.side
    top, left = (height - rows) // 2, (width - columns) // 2
    probabilities: list[list[float]] = []
    truth: list[int] = []
    with torch.inference_mode():
        for pixels, labels in DataLoader(samples, batch_size=BATCH_SIZE):
            middle = pixels[:, :, top : top + rows, left : left + columns]
            probabilities += torch.softmax(net(middle.to(device)).float(), 1).tolist()
            truth += labels.tolist()
    inference_helper.writeClassificationResult(
        output_file,
        names,
        probabilities,
        label_file=label_file or serving["labels"],
        ground_truth=truth if validate else None,
        prob_thresh=threshold,
    )
