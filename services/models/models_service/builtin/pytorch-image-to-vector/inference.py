"""Predicts the vectors of a folder of pictures, or of a split of a dataset, with trained weights."""

import argparse
import functools
import json
from pathlib import Path

import inference_helper
import torch
from model import build_model, preprocess
from PIL import Image
from record_datasets import open_records
from training_loop import find_weights

BATCH_SIZE = 256
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder with model_epoch_final.pth and serving.json")
    parser.add_argument("--input_dir", required=True, help="records of a split, or a folder of pictures")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--output_file", required=True, help="name of the result file in output_dir")
    parser.add_argument("--validate", default="", help="true: the input has vectors, report them as ground truth")
    arguments, _ = parser.parse_known_args()

    folder = Path(arguments.model)
    serving = json.loads((folder / "serving.json").read_text())
    shape = {side: serving[side] for side in ("channels", "height", "width")}
    model = build_model(serving["length"], **shape)
    model.load_state_dict(torch.load(find_weights(folder), map_location="cpu", weights_only=True))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()

    names, samples = open_input(Path(arguments.input_dir), functools.partial(preprocess, **shape))
    vectors, truth = [], []
    with torch.no_grad():
        for images, targets in torch.utils.data.DataLoader(samples, batch_size=BATCH_SIZE):
            vectors += model(images.to(device)).tolist()
            truth += targets.tolist()
    inference_helper.writeVectorResult(
        Path(arguments.output_dir) / arguments.output_file,
        names,
        vectors,
        ground_truth=truth if arguments.validate.lower() == "true" else None,
    )


def open_input(path: Path, to_input):
    """Names and a dataset of (input, vector); pictures in a folder have -1 instead."""
    files = sorted(file for file in path.glob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        records = open_records(path, to_input)
        return records.names(), records
    return [file.name for file in files], Pictures(files, to_input)


class Pictures(torch.utils.data.Dataset):
    """Picture files as (input, -1)."""

    def __init__(self, files, to_input):
        self.files, self.to_input = files, to_input

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with Image.open(self.files[index]) as image:
            return torch.from_numpy(self.to_input(image)), -1


if __name__ == "__main__":
    main()
