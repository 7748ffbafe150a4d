"""Classifies a folder of pictures, or a split of a dataset, with trained weights."""

import functools
import json

import inference_helper
import keras
import numpy as np
from dlmesh_sdk.image_files import open_images
from model import build_model, preprocess

BATCH_SIZE = 256


def main() -> None:
    arguments = inference_helper.parse_arguments("records of a split, or a folder of pictures")

    folder = arguments.model
    serving = json.loads((folder / "serving.json").read_text())
    shape = {side: serving[side] for side in ("channels", "height", "width")}
    model = build_model(len(serving["labels"]), **shape)
    model.load_weights(folder / "model_epoch_final.keras")

    validate = arguments.validate
    names, samples = open_images(arguments.input_dir, functools.partial(preprocess, **shape))
    probabilities, truth = [], []
    for start in range(0, len(names), BATCH_SIZE):
        batch = [samples[index] for index in range(start, min(start + BATCH_SIZE, len(names)))]
        logits = model.predict_on_batch(np.stack([np.asarray(picture) for picture, _ in batch]))
        probabilities += keras.ops.convert_to_numpy(keras.ops.softmax(logits)).tolist()
        truth += [label for _, label in batch]
    inference_helper.writeClassificationResult(
        arguments.output_dir / arguments.output_file,
        names,
        probabilities,
        label_file=arguments.label_file or serving["labels"],
        ground_truth=truth if validate else None,
        prob_thresh=arguments.prob_thresh,
    )


if __name__ == "__main__":
    main()
