"""Finds objects on a folder of pictures, or on a split of a dataset, with trained weights."""

import argparse
import json
from pathlib import Path

import inference_helper
import torch
from detection_datasets import DetectionDataset
from model import build_model, find_objects, preprocess
from PIL import Image
from training_loop import find_weights

BATCH_SIZE = 64
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder with model_epoch_final.pth and serving.json")
    parser.add_argument("--input_dir", required=True, help="a split of a dataset, or a folder of pictures")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--output_file", required=True, help="name of the result file in output_dir")
    parser.add_argument("--prob_thresh", default="0", help="objects below this probability are left out")
    parser.add_argument("--validate", default="", help="true: the input has boxes, report them as ground truth")
    parser.add_argument("--label_file", default="")
    arguments, _ = parser.parse_known_args()

    folder = Path(arguments.model)
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
        Path(arguments.output_dir) / arguments.output_file,
        names,
        found,
        label_file=labels,
        ground_truth=truth if arguments.validate.lower() == "true" else None,
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
    files = sorted(file for file in path.glob("*") if file.suffix.lower() in SUFFIXES)
    if files:
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
