"""Predicts the vectors of a folder of pictures, or of a split of a dataset, with trained weights."""

import inference_helper
import model
import torch
from dlmesh_sdk.image_files import open_images
from dlmesh_sdk.served.inference import Predictor
from dlmesh_sdk.served.vector import ServedVector
from dlmesh_sdk.training_loop import read_serving

BATCH_SIZE = 256


def main() -> None:
    arguments = inference_helper.parse_arguments("records of a split, or a folder of pictures")

    served = ServedVector(read_serving(arguments.model), model)
    predict = Predictor(served, arguments.model)
    names, samples = open_images(arguments.input_dir, served.to_input)
    vectors, truth = [], []
    for images, targets in torch.utils.data.DataLoader(samples, batch_size=BATCH_SIZE):
        vectors += predict({"INPUT__0": images})["OUTPUT__0"].tolist()
        truth += targets.tolist()
    inference_helper.writeVectorResult(
        arguments.output_dir / arguments.output_file,
        names,
        vectors,
        ground_truth=truth if arguments.validate else None,
    )


if __name__ == "__main__":
    main()
