"""Predicts the vectors of a folder of pictures, or of a split of a dataset, with trained weights."""

import functools
import json

import inference_helper
import torch
from dlmesh_sdk.image_files import open_images
from dlmesh_sdk.training_loop import find_weights
from model import build_model, preprocess

BATCH_SIZE = 256


def main() -> None:
    arguments = inference_helper.parse_arguments("records of a split, or a folder of pictures")

    folder = arguments.model
    serving = json.loads((folder / "serving.json").read_text())
    shape = {side: serving[side] for side in ("channels", "height", "width")}
    model = build_model(serving["length"], **shape)
    model.load_state_dict(torch.load(find_weights(folder), map_location="cpu", weights_only=True))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()

    names, samples = open_images(arguments.input_dir, functools.partial(preprocess, **shape))
    vectors, truth = [], []
    with torch.no_grad():
        for images, targets in torch.utils.data.DataLoader(samples, batch_size=BATCH_SIZE):
            vectors += model(images.to(device)).tolist()
            truth += targets.tolist()
    inference_helper.writeVectorResult(
        arguments.output_dir / arguments.output_file,
        names,
        vectors,
        ground_truth=truth if arguments.validate else None,
    )


if __name__ == "__main__":
    main()
