"""Finds objects on a folder of pictures, or on a split of a dataset, with trained weights."""

from pathlib import Path

import inference_helper
import model
from dlmesh_sdk.detection_datasets import DetectionDataset
from dlmesh_sdk.image_files import list_images
from dlmesh_sdk.served import Item
from dlmesh_sdk.served.detection import ServedDetection
from dlmesh_sdk.served.inference import Predictor
from dlmesh_sdk.training_loop import read_serving

BATCH_SIZE = 64


def main() -> None:
    arguments = inference_helper.parse_arguments("a split of a dataset, or a folder of pictures")

    served = ServedDetection(read_serving(arguments.model), model)
    predict = Predictor(served, arguments.model)
    names, files, truth = open_input(Path(arguments.input_dir), served.labels)
    found = []
    for start in range(0, len(files), BATCH_SIZE):
        encoded = served.encode([Item(str(file), file) for file in files[start : start + BATCH_SIZE]])
        for file, reason in encoded.errors.items():
            raise ValueError(f"{file}: {reason}")
        outputs = predict(encoded.inputs)
        found += [
            [(score["index"], score["prob"], score["bbox"]) for score in result["scores"]]
            for result in served.results(encoded, {name: output.numpy() for name, output in outputs.items()})
        ]
    inference_helper.writeObjectDetectionResult(
        arguments.output_dir / arguments.output_file,
        names,
        found,
        label_file=served.labels,
        ground_truth=truth if arguments.validate else None,
        prob_thresh=arguments.prob_thresh,
    )


def open_input(path, labels):
    """Names, picture files and true boxes; those of a folder of pictures are not known."""
    if files := list_images(path):
        return [file.name for file in files], files, None
    dataset = DetectionDataset(path, labels, model.preprocess)
    annotations = [dataset.annotation(index) for index in range(len(dataset))]
    names = [annotation["name"] for annotation in annotations]
    return names, [Path(a["path"]) for a in annotations], [annotation["boxes"] for annotation in annotations]


if __name__ == "__main__":
    main()
