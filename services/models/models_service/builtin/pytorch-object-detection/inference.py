"""Finds objects on a folder of pictures, or on a split of a dataset, with trained weights."""

import json
from pathlib import Path

import inference_helper
import torch
from dlmesh_sdk.detection_datasets import DetectionDataset
from dlmesh_sdk.image_files import list_images
from dlmesh_sdk.training_loop import find_weights
from model import build_model, find_objects, preprocess
from PIL import Image

BATCH_SIZE = 64


def main() -> None:
    arguments = inference_helper.parse_arguments("a split of a dataset, or a folder of pictures")

    folder = arguments.model
    labels = json.loads((folder / "serving.json").read_text())["labels"]
    model = build_model(len(labels))
    model.load_state_dict(torch.load(find_weights(folder), map_location="cpu", weights_only=True))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()

    names, pictures, truth = open_input(Path(arguments.input_dir), labels)
    found = []
    for batch in torch.utils.data.DataLoader(pictures, batch_size=BATCH_SIZE):
        found += find(model, batch["image"].to(device), batch["size"], float(arguments.prob_thresh or 0))
    inference_helper.writeObjectDetectionResult(
        arguments.output_dir / arguments.output_file,
        names,
        found,
        label_file=labels,
        ground_truth=truth if arguments.validate else None,
        prob_thresh=arguments.prob_thresh,
    )


@torch.no_grad()
def find(model, images, sizes, threshold):
    """The objects on each image, in pixels of its file."""
    objects = find_objects(model(images).cpu(), threshold)
    for found, (height, width) in zip(objects, sizes.tolist(), strict=True):
        found["boxes"] *= torch.tensor([width / images.shape[3], height / images.shape[2]] * 2)
    return objects


def open_input(path: Path, labels):
    """Names, pictures and true boxes; those of a folder of pictures are not known."""
    if files := list_images(path):
        return [file.name for file in files], Pictures(files), None
    dataset = DetectionDataset(path, labels, preprocess)
    annotations = [dataset.annotation(index) for index in range(len(dataset))]
    names = [annotation["name"] for annotation in annotations]
    return names, Pictures([a["path"] for a in annotations]), [annotation["boxes"] for annotation in annotations]


class Pictures(torch.utils.data.Dataset):
    """Picture files as the model's input, and their sizes."""

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with Image.open(self.files[index]) as image:
            size = torch.tensor([image.height, image.width])
            return {"image": torch.from_numpy(preprocess(image)), "size": size}


if __name__ == "__main__":
    main()
