"""A net as a torch module: one plan (layers in order) for each phase, over shared weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from caffe_nets.fillers import fill
from caffe_nets.layers import DATA_TYPES, LAYERS, UNREADABLE_TYPES, Layer, Shape
from caffe_nets.schema import CaffeError, FillerParameter, LayerParameter

# Fields that say when and how a layer is used, not what it computes.
_USAGE_FIELDS = ("include", "exclude", "phase", "param", "bottom", "loss_weight", "blobs", "propagate_down")
_PROBE_SAMPLES = 2


@dataclass(frozen=True)
class Step:
    """One layer of a plan: the key of its module, its blobs, the weights of its tops in the loss."""

    name: str
    type: str
    key: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    loss_weights: tuple[float, ...] = ()


@dataclass
class Plan:
    """The layers of one phase. `images` and `labels` are the blobs that are fed, `constants` DummyData layers;
    `transform` is the TransformationParameter of the data layer and `batch_size` its, 0 when it says none. The blob
    `logits` has the scores of the classes."""

    steps: list[Step] = field(default_factory=list)
    images: str = ""
    labels: str = ""
    constants: dict[str, tuple[Shape, Any]] = field(default_factory=dict)
    transform: Any = None
    batch_size: int = 0
    logits: str = ""
    logits_shape: Shape = ()


class CaffeNet(nn.Module):
    """The nets of all phases over one set of weights; `layers` are keyed by the names in the prototxt.

    Nets are added with `add`; the first decides the weights. In training mode `forward` runs the plan `train`, else
    `test`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.plans: dict[str, Plan] = {}
        self.groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        self._owners: dict[str, Any] = {}
        self._shared: dict[str, tuple[str, nn.Parameter]] = {}
        self._ties: list[tuple[Layer, Layer]] = []

    def add(self, phase: str, net: Any, state: Any, image_shape: Sequence[int]) -> Plan:
        """Add the plan `phase` of a NetParameter for pictures of `image_shape` [channels, height, width].

        CaffeError names the first layer that cannot be built.
        """
        plan = self.plans[phase] = Plan()
        blobs: dict[str, Tensor] = {}
        chosen = [layer for layer in _with_inputs(net) if _is_used(layer, state)]
        later = {top: layer.name for layer in reversed(chosen) for top in layer.top}
        was_training = self.training
        self.train(phase == "train")
        for parameter in chosen:
            try:
                with torch.no_grad():
                    self._add_layer(parameter, plan, blobs, later, tuple(image_shape), phase)
            except (ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
                shapes = ", ".join(f"{name} {list(blobs[name].shape)}" for name in parameter.bottom if name in blobs)
                context = f" (bottoms: {shapes})" if shapes else ""
                raise CaffeError(f"layer {parameter.name!r} ({parameter.type}): {error}{context}") from error
        self.train(was_training)
        if not plan.images:
            raise CaffeError(f"the net has no data layer for phase {phase}: add a Data or Input layer")
        plan.logits = _logits(plan)
        plan.logits_shape = tuple(blobs[plan.logits].shape)
        return plan

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(total loss, logits) of a batch; images [n, channels, height, width], labels [n]."""
        plan = self.plans["train" if self.training else "test"]
        return self.run(plan, images, labels)

    def run(self, plan: Plan, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`. Without labels only what leads to the logits is computed and the loss is 0."""
        blobs = self._fed(plan, images, labels)
        loss = images.new_zeros(())
        steps = plan.steps if labels is not None else _leading_to(plan, plan.logits)
        for step in steps:
            for top, weight in zip(self._run_step(step, blobs), step.loss_weights, strict=False):
                if weight:
                    loss = loss + weight * top.sum()
        return loss, blobs[plan.logits]

    def blobs_of(self, plan: Plan, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Every blob of a pass, by its name; those of in-place layers as they are at the end."""
        blobs = self._fed(plan, images, labels)
        for step in plan.steps:
            self._run_step(step, blobs)
        return blobs

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weights by their multipliers, as caffe_solvers takes them; those with lr_mult 0 are fixed and left out."""
        return [
            {"params": parameters, "lr_mult": lr_mult, "decay_mult": decay_mult}
            for (lr_mult, decay_mult), parameters in self.groups.items()
            if lr_mult
        ]

    def _apply(self, function: Any, recurse: bool = True) -> Any:
        super()._apply(function, recurse)
        # Moving replaces buffers: those of two phases are one again.
        for own, other in self._ties:
            own._buffers.update(other._buffers)
        return self

    def _fed(self, plan: Plan, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        blobs = {name: fill(shape, filler).to(images) for name, (shape, filler) in plan.constants.items()}
        blobs[plan.images] = images
        if plan.labels and labels is not None:
            blobs[plan.labels] = labels
        return blobs

    def _run_step(self, step: Step, blobs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        outputs = self.layers[step.key](*(blobs[name] for name in step.bottoms))
        tops: tuple[Tensor, ...] = outputs if isinstance(outputs, tuple) else (outputs,)
        blobs.update(zip(step.tops, tops, strict=False))
        return tops

    def _add_layer(
        self,
        parameter: Any,
        plan: Plan,
        blobs: dict[str, Tensor],
        later: Mapping[str, str],
        image_shape: Shape,
        phase: str,
    ) -> None:
        if reason := UNREADABLE_TYPES.get(parameter.type):
            raise CaffeError(reason)
        for top in parameter.top:
            if top in blobs and top not in parameter.bottom:
                raise CaffeError(f"its top {top!r} is already the top of another layer")
        if parameter.type in DATA_TYPES:
            _add_data(parameter, plan, blobs, image_shape)
            return
        if parameter.type not in LAYERS:
            raise CaffeError(f"unknown type; known: {', '.join(sorted(LAYERS.keys() | DATA_TYPES))}")
        for bottom in parameter.bottom:
            if bottom not in blobs:
                maker = later.get(bottom, parameter.name)
                if maker == parameter.name:
                    raise CaffeError(f"its bottom {bottom!r} is made by no layer")
                raise CaffeError(
                    f"its bottom {bottom!r} is made by the later layer {maker!r}; "
                    "layers stand in the order they run in, without cycles"
                )
        key = self._module_for(parameter, [tuple(blobs[name].shape) for name in parameter.bottom], phase)
        module: Any = self.layers[key]
        module.train(phase == "train")
        # Sizes are found by one pass; it must not count among the statistics of the data.
        kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
        # A loss needs no name.
        tops = tuple(parameter.top) or ((parameter.name,) if module.loss_weight else ())
        weights = list(parameter.loss_weight) or [module.loss_weight]
        weights += [0.0] * (len(tops) - len(weights))
        step = Step(parameter.name, parameter.type, key, tuple(parameter.bottom), tops, tuple(weights))
        made = self._run_step(step, blobs)
        for buffer, before in kept:
            buffer.copy_(before)
        if parameter.top and len(made) < len(parameter.top):
            raise CaffeError(f"has {len(parameter.top)} tops; it makes {len(made)}")
        plan.steps.append(step)

    def _module_for(self, parameter: Any, shapes: list[Shape], phase: str) -> str:
        """The key of the layer's module: of the same name where another phase has it, else a new one."""
        key = _key(parameter.name)
        if key not in self.layers:
            self.layers[key] = self._made(parameter, shapes)
            self._owners[key] = _essence(parameter)
            self._group(key, parameter)
            return key
        if self._owners[key] == _essence(parameter):
            module: Any = self.layers[key]
            self._check_same(module, LAYERS[parameter.type](parameter, shapes))
            return key
        own = self._made(parameter, shapes)
        if own.blob_names:
            self._check_same(self.layers[key], own)
            for name in own.blob_names:
                target = own._parameters if name in own._parameters else own._buffers
                target[name] = self.layers[key].blob(name)  # type: ignore[operator]
            self._ties.append((own, self.layers[key]))  # type: ignore[arg-type]
        own_key = f"{key}@{phase}"
        self.layers[own_key] = own
        return own_key

    @staticmethod
    def _made(parameter: Any, shapes: list[Shape]) -> Layer:
        own = LAYERS[parameter.type](parameter, shapes)
        learned = sum(1 for _ in own.parameters(recurse=False))
        if len(parameter.param) > max(learned, len(own.blob_names)):
            raise CaffeError(f"has {len(parameter.param)} param entries for {len(own.blob_names)} blobs")
        return own

    @staticmethod
    def _check_same(module: Any, other: Layer) -> None:
        sizes = [[list(each.blob(name).shape) for name in each.blob_names] for each in (module, other)]
        if sizes[0] != sizes[1]:
            raise CaffeError(f"its weights are {sizes[1]}; in the training phase they are {sizes[0]}")

    def _group(self, key: str, parameter: Any) -> None:
        module: Any = self.layers[key]
        for place, name in enumerate(module.blob_names):
            if name not in module._parameters:
                continue
            spec = parameter.param[place] if place < len(parameter.param) else None
            if spec is not None and spec.name:
                owner, shared = self._shared.setdefault(spec.name, (parameter.name, module._parameters[name]))
                if shared.shape != module._parameters[name].shape:
                    raise CaffeError(
                        f"its shared weights {spec.name!r} are {list(module._parameters[name].shape)}; "
                        f"those of layer {owner!r} are {list(shared.shape)}"
                    )
                module._parameters[name] = shared
                if owner != parameter.name:
                    continue
            multipliers = (spec.lr_mult, spec.decay_mult) if spec is not None else (1.0, 1.0)
            weight: nn.Parameter = module._parameters[name]
            weight.requires_grad_(multipliers[0] != 0)
            self.groups.setdefault(multipliers, []).append(weight)


def _with_inputs(net: Any) -> list[Any]:
    """The layers, after an Input layer for every `input` of the net."""
    inputs = []
    for place, name in enumerate(net.input):
        layer = LayerParameter(name=name, type="Input", top=[name])
        dims = list(net.input_shape[place].dim) if place < len(net.input_shape) else net.input_dim[4 * place :][:4]
        layer.input_param.shape.add(dim=dims)
        inputs.append(layer)
    return [*inputs, *net.layer]


def _is_used(layer: Any, state: Any) -> bool:
    if layer.include and layer.exclude:
        raise CaffeError(f"layer {layer.name!r} ({layer.type}): give include or exclude, not both")
    if layer.include:
        return any(_meets(rule, state) for rule in layer.include)
    return not any(_meets(rule, state) for rule in layer.exclude)


def _meets(rule: Any, state: Any) -> bool:
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and set(rule.stage) <= set(state.stage)
        and not set(rule.not_stage) & set(state.stage)
    )


def _add_data(parameter: Any, plan: Plan, blobs: dict[str, Tensor], image_shape: Shape) -> None:
    if parameter.type == "DummyData":
        _add_constants(parameter, plan, blobs)
        return
    tops = list(parameter.top) or [parameter.name]
    if plan.images and parameter.type == "Input" and len(tops) == 1 and not plan.labels:
        # The second input of a net is what the first is compared with.
        tops = ["", *tops]
    elif plan.images:
        raise CaffeError("there is a data layer for this phase already; one is fed")
    if len(tops) > 2:
        raise CaffeError(f"has {len(tops)} tops; data has images and labels")
    if tops[0]:
        plan.images = tops[0]
        plan.transform = _transform(parameter)
        side = plan.transform.crop_size
        channels, height, width = image_shape
        if side > min(height, width):
            raise CaffeError(f"crop_size is {side}; the pictures are {height} x {width}")
        blobs[tops[0]] = torch.zeros(_PROBE_SAMPLES, channels, side or height, side or width)
        if parameter.type == "Data":
            plan.batch_size = parameter.data_param.batch_size
        elif parameter.type == "ImageData":
            plan.batch_size = parameter.image_data_param.batch_size
    if len(tops) > 1:
        plan.labels = tops[1]
        blobs[tops[1]] = torch.zeros(_PROBE_SAMPLES, dtype=torch.long)


def _transform(parameter: Any) -> Any:
    """transform_param, completed by what older files say in the data layer's own parameters."""
    merged = type(parameter.transform_param)()
    merged.CopyFrom(parameter.transform_param)
    for own in (parameter.data_param, parameter.image_data_param):
        for name in ("scale", "mirror", "crop_size", "mean_file"):
            if own.HasField(name) and not merged.HasField(name):
                setattr(merged, name, getattr(own, name))
    return merged


def _add_constants(parameter: Any, plan: Plan, blobs: dict[str, Tensor]) -> None:
    own = parameter.dummy_data_param
    for place, top in enumerate(parameter.top):
        if own.shape:
            shape = tuple(own.shape[min(place, len(own.shape) - 1)].dim)
        else:
            sides = (own.num, own.channels, own.height, own.width)
            if not all(sides):
                raise CaffeError("needs a shape, or num, channels, height and width")
            shape = tuple(int(side[min(place, len(side) - 1)]) for side in sides)
        fillers = own.data_filler
        filler = fillers[min(place, len(fillers) - 1)] if fillers else FillerParameter()
        plan.constants[top] = (shape, filler)
        blobs[top] = fill(shape, filler)


def _logits(plan: Plan) -> str:
    """The scores of the classes: what goes into the softmax, else into the loss, else the last blob."""
    for types in (("SoftmaxWithLoss",), ("Softmax",), ("HingeLoss", "SigmoidCrossEntropyLoss", "EuclideanLoss")):
        # Of several the last: the others are auxiliary classifiers.
        for step in reversed(plan.steps):
            if step.type in types:
                return step.bottoms[0]
    return next((step.tops[0] for step in reversed(plan.steps) if step.tops and step.type != "Accuracy"), plan.images)


def _leading_to(plan: Plan, blob: str) -> list[Step]:
    """The steps that `blob` depends on."""
    needed, steps = {blob}, []
    for step in reversed(plan.steps):
        if needed & set(step.tops):
            # In place: what it changes was made by an earlier step.
            needed |= set(step.bottoms)
            steps.append(step)
    return steps[::-1]


def _key(name: str) -> str:
    """A name that torch takes for a module."""
    key = name.replace(".", "_") or "layer"
    return f"{key}_" if hasattr(nn.ModuleDict, key) or key == "training" else key


def _essence(parameter: Any) -> bytes:
    """What a layer computes: two layers of one name with the same essence are one module."""
    copied = LayerParameter()
    copied.CopyFrom(parameter)
    for name in _USAGE_FIELDS:
        copied.ClearField(name)
    for described, own in copied.ListFields():
        if described.message_type is not None:
            # A net for inference leaves out how weights begin.
            for inner in described.message_type.fields:
                if inner.name.endswith("filler"):
                    own.ClearField(inner.name)
    return bytes(copied.SerializeToString(deterministic=True))
