"""Finds for each picture of a split the label of the picture that is nearest; vectors of a folder of pictures."""

import inference_helper
import model
from dlmesh_sdk.image_files import list_images, open_images
from dlmesh_sdk.picture_comparison import embed, label_probabilities
from dlmesh_sdk.record_datasets import read_labels
from dlmesh_sdk.served.comparison import ServedComparison
from dlmesh_sdk.served.inference import Predictor
from dlmesh_sdk.training_loop import read_serving


def main() -> None:
    arguments = inference_helper.parse_arguments("records of a split, or a folder of pictures")

    served = ServedComparison(read_serving(arguments.model), model)
    predict = Predictor(served, arguments.model)
    names, samples = open_images(arguments.input_dir, served.to_input)
    vectors, targets = embed(predict, samples)
    file = arguments.output_dir / arguments.output_file
    if list_images(arguments.input_dir):
        inference_helper.writeVectorResult(file, names, vectors.tolist())
        return
    labels = read_labels(arguments.input_dir)
    inference_helper.writeClassificationResult(
        file,
        names,
        label_probabilities(vectors, targets, len(labels)).tolist(),
        label_file=arguments.label_file or labels,
        ground_truth=targets.tolist() if arguments.validate else None,
        prob_thresh=arguments.prob_thresh,
    )


if __name__ == "__main__":
    main()
