"""The detector, the one way from a picture to its input, and from its output to boxes.

Anchor-free, on one scale: every cell of a grid says how probable each class is at its place and how far the edges of
the object are. The cells around an object's centre learn it.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

# Pictures are brought to this size; a multiple of 16.
HEIGHT = WIDTH = 96
STRIDE = 4
# Cells nearer to the centre of an object than so many cells learn it.
CENTRE_CELLS = 1.5
MAX_BOXES = 100
NMS_IOU = 0.5
MIN_PROBABILITY = 0.01


class Detector(nn.Module):
    """Pictures [B, 3, H, W] to [B, classes + 4, H / STRIDE, W / STRIDE]: logits, then log distances in cells."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(*_block(3, 32, 2), *_block(32, 64, 2), *_block(64, 64, 1))
        self.coarse = nn.Sequential(*_block(64, 128, 2), *_block(128, 128, 2), *_block(128, 64, 1))
        self.head = nn.Sequential(*_block(64, 64, 1), *_block(64, 64, 1))
        self.output = nn.Conv2d(64, num_classes + 4, kernel_size=1)
        # At first no cell claims anything: the many empty ones would drown the rest.
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.constant_(self.output.bias[:num_classes], -4.0)
        nn.init.constant_(self.output.bias[num_classes:], 0.5)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        wide = functional.interpolate(self.coarse(fine), size=fine.shape[2:], mode="nearest")
        return self.output(self.head(fine + wide))


def build_model(num_classes: int) -> nn.Module:
    """The detector for so many classes."""
    return Detector(num_classes)


def preprocess(image: Image.Image) -> np.ndarray:
    """A picture as float32 [3, HEIGHT, WIDTH] in -1..1."""
    image = image.convert("RGB")
    if image.size != (WIDTH, HEIGHT):
        image = image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    return np.ascontiguousarray((np.asarray(image, np.float32) / 127.5 - 1.0).transpose(2, 0, 1))


def detection_loss(outputs: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    """Focal loss of the classes and 1 - IoU of the boxes, a mean over the cells that learn an object."""
    outputs = outputs.float()
    logits, distances = outputs[:, :-4], outputs[:, -4:]
    wanted = torch.zeros_like(logits)
    counted = torch.ones_like(logits[:, :1])
    boxes = torch.zeros_like(distances)
    for number, target in enumerate(targets):
        _assign(target, wanted[number], boxes[number], counted[number])
    probability = torch.sigmoid(logits)
    error = (probability - wanted).abs()
    weight = torch.where(wanted > 0, 0.75, 0.25) * error.square() * counted
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    learning = wanted.amax(1) > 0
    cells = learning.sum().clamp(min=1)
    overlap = _overlaps(_boxes_of(distances).movedim(1, -1)[learning], boxes.movedim(1, -1)[learning])
    return ((weight * entropy).sum() + (1 - overlap).sum()) / cells


@torch.no_grad()
def find_objects(outputs: Tensor, threshold: float = MIN_PROBABILITY) -> list[dict[str, Tensor]]:
    """For each picture `boxes` [N, 4] in pixels of the input, `labels` and `scores` [N], the most probable first."""
    outputs = outputs.float()
    scores = torch.sigmoid(outputs[:, :-4])
    boxes = _boxes_of(outputs[:, -4:])
    limits = torch.tensor([boxes.shape[3], boxes.shape[2]] * 2, device=boxes.device) * float(STRIDE)
    return [
        _of_picture(*pair, limits, max(float(threshold), MIN_PROBABILITY)) for pair in zip(scores, boxes, strict=True)
    ]


def suppress(boxes: Tensor, scores: Tensor, iou: float = NMS_IOU) -> Tensor:
    """Indices of the boxes [N, 4] that remain when each removes less probable ones it overlaps by more than `iou`."""
    kept = []
    order = scores.argsort(descending=True)
    while order.numel():
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[_overlaps(boxes[best].expand(len(order), 4), boxes[order]) <= iou]
    return torch.stack(kept) if kept else order


def _of_picture(scores: Tensor, boxes: Tensor, limits: Tensor, threshold: float) -> dict[str, Tensor]:
    found, places = scores.flatten(1).t().flatten().topk(min(scores.numel(), 4 * MAX_BOXES))
    places = places[found >= threshold]
    found = found[: len(places)]
    labels = places % len(scores)
    boxes = boxes.flatten(1).t()[places // len(scores)].clamp(min=0).minimum(limits)
    # Boxes of different classes are moved apart: they do not suppress each other.
    kept = suppress(boxes + (labels * 2 * limits.max())[:, None], found)[:MAX_BOXES]
    return {"boxes": boxes[kept], "labels": labels[kept], "scores": found[kept]}


def _assign(target: dict[str, Tensor], wanted: Tensor, boxes: Tensor, counted: Tensor) -> None:
    """Write what the cells of one picture should say; small objects come last, they have no other cells."""
    height, width = wanted.shape[1:]
    y = (torch.arange(height, device=wanted.device) + 0.5)[:, None] * STRIDE
    x = (torch.arange(width, device=wanted.device) + 0.5)[None] * STRIDE
    sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
    for index in sides.prod(1).argsort(descending=True).tolist():
        xmin, ymin, xmax, ymax = target["boxes"][index]
        inside = (x > xmin) & (x < xmax) & (y > ymin) & (y < ymax)
        if target["ignored"][index]:
            counted[:, inside] = 0
            continue
        across, down = (x - (xmin + xmax) / 2).abs(), (y - (ymin + ymax) / 2).abs()
        cells = inside & (across < CENTRE_CELLS * STRIDE) & (down < CENTRE_CELLS * STRIDE)
        if not cells.any():
            # An object smaller than a cell may have no cell's middle inside: the nearest learns it.
            cells = across + down == (across + down).min()
        wanted[:, cells] = 0
        wanted[target["labels"][index], cells] = 1
        boxes[:, cells] = target["boxes"][index][:, None]
        counted[:, cells] = 1


def _boxes_of(distances: Tensor) -> Tensor:
    """Log distances [B, 4, H, W] in cells as boxes [B, 4, H, W] in pixels."""
    height, width = distances.shape[2:]
    y = (torch.arange(height, device=distances.device) + 0.5)[:, None].expand(height, width) * STRIDE
    x = (torch.arange(width, device=distances.device) + 0.5)[None].expand(height, width) * STRIDE
    left, top, right, bottom = (distances.clamp(max=6).exp() * STRIDE).unbind(1)
    return torch.stack([x - left, y - top, x + right, y + bottom], 1)


def _overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes [N, 4], pair by pair."""
    corners = torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])
    shared = corners.clamp(min=0).prod(1)
    areas = (first[:, 2:] - first[:, :2]).prod(1) + (second[:, 2:] - second[:, :2]).prod(1)
    return shared / (areas - shared).clamp(min=1e-6)


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
    return [convolution, nn.GroupNorm(8, outputs), nn.ReLU()]
