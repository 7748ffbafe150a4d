"""The net of a model directory for one dataset, with the transformation of its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caffe_nets.folder import Folder, read_folder
from caffe_nets.net import CaffeNet, Plan
from caffe_nets.pictures import Transform
from caffe_nets.schema import MESSAGES, CaffeError


class CaffeModel(CaffeNet):
    """All phases of a folder's nets for pictures of `shape` [channels, height, width] in `classes` classes.

    `input_mean` travels with the weights, so that who serves them needs no dataset. With `takes_pixels` it is called as
    the platform serves models: pixels as `pictures.to_pixels` makes them, already of the size of the input, in; scores
    of the classes out.
    """

    input_mean: Tensor

    def __init__(
        self, folder: Folder, shape: tuple[int, int, int], classes: int, mean_image: Tensor | None = None
    ) -> None:
        super().__init__()
        self.folder, self.shape, self.classes = folder, shape, classes
        self.takes_pixels = False
        train = self.add("train", folder.train_net, folder.train_state, shape)
        test = self.add("test", folder.test_net, folder.test_state, shape)
        if not train.labels:
            raise CaffeError("the data layer of the training phase needs a second top for the labels")
        self.train_transform = Transform(train.transform, shape, mean_image)
        self.test_transform = Transform(test.transform, shape, mean_image)
        if self.train_transform.side != self.test_transform.side:
            raise CaffeError("transform_param: crop_size must be the same in both phases")
        self.register_buffer("input_mean", self.test_transform.middle_mean.clone())
        self.inference = self._add_inference()
        self.input_shape = (shape[0], *self.test_transform.side)
        self._check_classes(train)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        if not self.takes_pixels:
            return super().forward(images, labels)
        _, logits = self.run(self.inference, (images - self.input_mean) * self.test_transform.scale)
        return logits.flatten(1)[:, : self.classes]

    def _add_inference(self) -> Plan:
        net = self.folder.inference_net
        if net is None:
            return self.plans["test"]
        state = MESSAGES["NetState"]()
        state.CopyFrom(self.folder.test_state)
        known = {step.name for step in self.plans["train"].steps}
        plan = self.add("inference", net, state, (self.shape[0], *self.test_transform.side))
        for step in plan.steps:
            module: Any = self.layers[step.key]
            if module.blob_names and step.name not in known:
                raise CaffeError(
                    f"layer {step.name!r} ({step.type}) of the inference net is in no training phase: it has no weights"
                )
        return plan

    def _check_classes(self, plan: Plan) -> None:
        if not any(step.type in ("SoftmaxWithLoss", "HingeLoss") for step in plan.steps):
            return
        scores = plan.logits_shape[1]
        if scores < self.classes:
            maker = next(step for step in reversed(plan.steps) if plan.logits in step.tops)
            raise CaffeError(
                f"layer {maker.name!r} ({maker.type}): its top {plan.logits!r} has {scores} scores, "
                f"and the dataset has {self.classes} labels; set num_output to {self.classes}"
            )


def placeholder_mean(folder: Folder, shape: tuple[int, int, int]) -> Tensor | None:
    """A mean of the right shape where the real one comes with the weights; None when the nets name no mean_file."""
    nets = (folder.train_net, folder.test_net)
    named = any(
        layer.transform_param.mean_file or layer.data_param.mean_file or layer.image_data_param.mean_file
        for net in nets
        for layer in net.layer
    )
    return torch.zeros(shape) if named else None


def build(folder: Path, shape: tuple[int, int, int], classes: int, mean_image: Tensor | None = None) -> CaffeModel:
    """The model of the prototxt files in `folder`; CaffeError when they cannot be understood or built."""
    return CaffeModel(read_folder(folder), shape, classes, mean_image)
