"""Classifies a folder of pictures, or a split of a dataset, with trained weights."""

import argparse
import functools
import json
from pathlib import Path

import inference_helper
import keras
import numpy as np
from model import build_model, preprocess
from PIL import Image
from record_datasets import open_records

BATCH_SIZE = 256
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder with model_epoch_final.keras and serving.json")
    parser.add_argument("--input_dir", required=True, help="records of a split, or a folder of pictures")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--output_file", required=True, help="name of the result file in output_dir")
    parser.add_argument("--prob_thresh", default="0", help="labels below this probability are left out")
    parser.add_argument("--validate", default="", help="true: the input has labels, report them as ground truth")
    parser.add_argument("--label_file", default="")
    arguments, _ = parser.parse_known_args()

    folder = Path(arguments.model)
    serving = json.loads((folder / "serving.json").read_text())
    shape = {side: serving[side] for side in ("channels", "height", "width")}
    model = build_model(len(serving["labels"]), **shape)
    model.load_weights(folder / "model_epoch_final.keras")

    validate = arguments.validate.lower() == "true"
    names, samples = open_input(Path(arguments.input_dir), functools.partial(preprocess, **shape))
    probabilities, truth = [], []
    for start in range(0, len(names), BATCH_SIZE):
        batch = [samples[index] for index in range(start, min(start + BATCH_SIZE, len(names)))]
        logits = model.predict_on_batch(np.stack([np.asarray(picture) for picture, _ in batch]))
        probabilities += keras.ops.convert_to_numpy(keras.ops.softmax(logits)).tolist()
        truth += [label for _, label in batch]
    inference_helper.writeClassificationResult(
        Path(arguments.output_dir) / arguments.output_file,
        names,
        probabilities,
        label_file=arguments.label_file or serving["labels"],
        ground_truth=truth if validate else None,
        prob_thresh=arguments.prob_thresh,
    )


def open_input(path: Path, to_input):
    """Names and samples of (input, label); pictures in a folder have label -1."""
    files = sorted(file for file in path.glob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        records = open_records(path, to_input)
        return records.names(), records
    return [file.name for file in files], Pictures(files, to_input)


class Pictures:
    """Picture files as (input, -1)."""

    def __init__(self, files, to_input):
        self.files, self.to_input = files, to_input

    def __getitem__(self, index):
        with Image.open(self.files[index]) as image:
            return self.to_input(image), -1


if __name__ == "__main__":
    main()
