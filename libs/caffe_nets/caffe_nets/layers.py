"""Caffe's layers as torch modules. A layer is built from its LayerParameter and the shapes of its bottoms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from caffe_nets.fillers import fill
from caffe_nets.schema import CaffeError, FillerParameter, enum_word

Shape = tuple[int, ...]
Tops = Tensor | tuple[Tensor, ...]
# Where data comes in; the network itself feeds their tops.
DATA_TYPES = frozenset({"Data", "ImageData", "Input", "DummyData"})
UNREADABLE_TYPES = {"HDF5Data": "HDF5 files are not read; make a dataset of the platform and use a Data layer"}
LAYERS: dict[str, type[Layer]] = {}


class Layer(nn.Module):
    """A layer with weights and buffers in the order of Caffe's blobs (`blob_names`)."""

    blob_names: tuple[str, ...] = ()
    bottoms: ClassVar[tuple[int, int]] = (1, 1)
    # Weight of its first top in the loss when none is given.
    loss_weight: ClassVar[float] = 0.0

    def __init__(self, parameter: Any, shapes: Sequence[Shape]) -> None:
        super().__init__()
        least, most = self.bottoms
        if not least <= len(shapes) <= most:
            raise CaffeError(f"has {len(shapes)} bottoms; allowed: {least}" + (f" to {most}" if most > least else ""))
        self.parameter = parameter
        self.build(parameter, [tuple(shape) for shape in shapes])

    def build(self, parameter: Any, shapes: list[Shape]) -> None:
        """Make the weights."""

    def weigh(self, name: str, shape: Shape, filler: Any) -> None:
        """Add a learned blob."""
        self.register_parameter(name, nn.Parameter(fill(shape, filler)))
        self.blob_names = (*self.blob_names, name)

    def blob(self, name: str) -> Tensor:
        """A weight or buffer of `blob_names`."""
        found: Tensor = getattr(self, name)
        return found


def layer(*types: str) -> Callable[[type[Layer]], type[Layer]]:
    def register(cls: type[Layer]) -> type[Layer]:
        LAYERS.update(dict.fromkeys(types, cls))
        return cls

    return register


def _pair(parameter: Any, name: str, default: int) -> tuple[int, int]:
    """Height and width of a kernel, pad or stride, however it was spelled."""
    short = "kernel" if name == "kernel_size" else name
    height, width = f"{short}_h", f"{short}_w"
    fields = parameter.DESCRIPTOR.fields_by_name
    if height in fields and (parameter.HasField(height) or parameter.HasField(width)):
        return int(getattr(parameter, height) or default), int(getattr(parameter, width) or default)
    given = getattr(parameter, name)
    if fields[name].is_repeated:
        values = list(given) or [default]
        if len(values) > 2:
            raise CaffeError(f"{name} has {len(values)} values; two-dimensional layers take 1 or 2")
        return int(values[0]), int(values[-1])
    return (int(given), int(given)) if parameter.HasField(name) else (default, default)


def _steps(parameter: Any, name: str) -> tuple[int, int]:
    """Stride or dilation; torch computes for ever with 0."""
    steps = _pair(parameter, name, 1)
    if min(steps) < 1:
        raise CaffeError(f"{name} is {min(steps)}; it must be 1 or more")
    return steps


def _kernel(parameter: Any) -> tuple[int, int]:
    kernel = _pair(parameter, "kernel_size", 0)
    if min(kernel) < 1:
        raise CaffeError("kernel_size (or kernel_h and kernel_w) must be given, 1 or more")
    return kernel


def _outputs(parameter: Any) -> int:
    if parameter.num_output < 1:
        raise CaffeError(f"num_output is {parameter.num_output}; it must be 1 or more")
    return int(parameter.num_output)


def _images(shape: Shape) -> Shape:
    if len(shape) != 4:
        raise CaffeError(f"takes [n, channels, height, width], not {list(shape)}")
    return shape


def _axis(axis: int, dimensions: int) -> int:
    if not -dimensions <= axis < dimensions:
        raise CaffeError(f"axis is {axis}; the bottom has {dimensions} axes")
    return axis % dimensions


@layer("Convolution")
class Convolution(Layer):
    def build(self, parameter: Any, shapes: list[Shape]) -> None:
        own = parameter.convolution_param
        self.groups, outputs = int(own.group), _outputs(own)
        if own.axis != 1:
            raise CaffeError(f"convolution_param.axis is {own.axis}; allowed: 1")
        channels = _images(shapes[0])[1]
        if self.groups < 1 or channels % self.groups or outputs % self.groups:
            raise CaffeError(f"group is {self.groups}; it must divide {channels} channels and {outputs} outputs")
        self.stride, self.padding = _steps(own, "stride"), _pair(own, "pad", 0)
        self.dilation = _steps(own, "dilation")
        self.weigh("weight", (*self.ends(channels, outputs), *_kernel(own)), own.weight_filler)
        self.bias: Tensor | None
        if own.bias_term:
            self.weigh("bias", (outputs,), own.bias_filler)
        else:
            self.bias = None

    def ends(self, channels: int, outputs: int) -> tuple[int, int]:
        return outputs, channels // self.groups

    def forward(self, x: Tensor) -> Tops:
        return functional.conv2d(
            x, self.blob("weight"), self.bias, self.stride, self.padding, self.dilation, self.groups
        )


@layer("Deconvolution")
class Deconvolution(Convolution):
    def ends(self, channels: int, outputs: int) -> tuple[int, int]:
        return channels, outputs // self.groups

    def forward(self, x: Tensor) -> Tops:
        weight = self.blob("weight")
        return functional.conv_transpose2d(
            x, weight, self.bias, self.stride, self.padding, 0, self.groups, self.dilation
        )


@layer("Pooling")
class Pooling(Layer):
    """Sizes are rounded up, the last window starts inside the picture or its left padding, and an average counts the
    padding on both sides but not what lies beyond it: torch's ceil_mode does exactly that."""

    def build(self, parameter: Any, shapes: list[Shape]) -> None:
        own = parameter.pooling_param
        _, _, height, width = _images(shapes[0])
        self.method = enum_word(own, "pool")
        if self.method == "STOCHASTIC":
            raise CaffeError("pool STOCHASTIC is not supported; allowed: MAX, AVE")
        self.is_global = own.global_pooling
        self.kernel = (height, width) if self.is_global else _kernel(own)
        self.stride, self.padding = _steps(own, "stride"), _pair(own, "pad", 0)
        if any(2 * pad > kernel for pad, kernel in zip(self.padding, self.kernel, strict=True)):
            raise CaffeError(f"pad {self.padding} is more than half of the kernel {self.kernel}")
        self.rounds_up = enum_word(own, "round_mode") == "CEIL"

    def forward(self, x: Tensor) -> Tops:
        if self.is_global:
            return x.amax((2, 3), keepdim=True) if self.method == "MAX" else x.mean((2, 3), keepdim=True)
        if self.method == "MAX":
            return functional.max_pool2d(x, self.kernel, self.stride, self.padding, ceil_mode=self.rounds_up)
        return functional.avg_pool2d(x, self.kernel, self.stride, self.padding, self.rounds_up, count_include_pad=True)


@layer("InnerProduct")
class InnerProduct(Layer):
    def build(self, parameter: Any, shapes: list[Shape]) -> None:
        own = parameter.inner_product_param
        self.axis, self.transpose = _axis(own.axis, len(shapes[0])), own.transpose
        inputs, outputs = math.prod(shapes[0][self.axis :]), _outputs(own)
        self.weigh("weight", (inputs, outputs) if self.transpose else (outputs, inputs), own.weight_filler)
        self.bias: Tensor | None
        if own.bias_term:
            self.weigh("bias", (outputs,), own.bias_filler)
        else:
            self.bias = None

    def forward(self, x: Tensor) -> Tops:
        weight = self.blob("weight")
        return functional.linear(x.flatten(self.axis), weight.t() if self.transpose else weight, self.bias)


@layer("ReLU")
class ReLU(Layer):
    def forward(self, x: Tensor) -> Tops:
        return functional.leaky_relu(x, self.parameter.relu_param.negative_slope)


@layer("PReLU")
class PReLU(Layer):
    def build(self, parameter: Any, shapes: list[Shape]) -> None:
        own = parameter.prelu_param
        filler = own.filler if own.HasField("filler") else FillerParameter(value=0.25)
        self.weigh("weight", (1 if own.channel_shared else shapes[0][1],), filler)

    def forward(self, x: Tensor) -> Tops:
        return functional.prelu(x, self.blob("weight"))


_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "Sigmoid": torch.sigmoid,
    "TanH": torch.tanh,
    "AbsVal": torch.abs,
    "BNLL": functional.softplus,
}


@layer(*_ELEMENTWISE)
class Elementwise(Layer):
    def forward(self, x: Tensor) -> Tops:
        return _ELEMENTWISE[self.parameter.type](x)


@layer("ELU")
class ELU(Layer):
    def forward(self, x: Tensor) -> Tops:
        return functional.elu(x, self.parameter.elu_param.alpha)


@layer("Power")
class Power(Layer):
    def forward(self, x: Tensor) -> Tops:
        own = self.parameter.power_param
        inner = own.shift + own.scale * x
        return inner if own.power == 1 else inner**own.power


@layer("Exp")
class Exp(Layer):
    def forward(self, x: Tensor) -> Tops:
        own = self.parameter.exp_param
        return torch.exp((own.shift + own.scale * x) * (1.0 if own.base == -1 else math.log(own.base)))

    def build(self, parameter: Any, shapes: list[Shape]) -> None:
        _check_base(parameter.exp_param.base)


@layer("Log")
class Log(Layer):
    def build(self, parameter: Any, shapes: list[Shape]) -> None:
        _check_base(parameter.log_param.base)

    def forward(self, x: Tensor) -> Tops:
        own = self.parameter.log_param
        return torch.log(own.shift + own.scale * x) / (1.0 if own.base == -1 else math.log(own.base))


def _check_base(base: float) -> None:
    if base != -1 and base <= 0:
        raise CaffeError(f"base is {base}; allowed: more than 0, or -1 for e")


@layer("LRN")
class LRN(Layer):
    def build(self, parameter: Any, shapes: list[Shape]) -> None:
        size = parameter.lrn_param.local_size
        if size % 2 != 1:
            raise CaffeError(f"local_size is {size}; it must be odd")
        _images(shapes[0])

    def forward(self, x: Tensor) -> Tops:
        own = self.parameter.lrn_param
        if enum_word(own, "norm_region") == "ACROSS_CHANNELS":
            return functional.local_response_norm(x, own.local_size, own.alpha, own.beta, own.k)
        # The zeros of the border count, and k is always 1 here.
        mean = functional.avg_pool2d(x * x, own.local_size, 1, own.local_size // 2)
        return x * (1 + own.alpha * mean) ** -own.beta


@layer("Dropout")
class Dropout(Layer):
    def forward(self, x: Tensor) -> Tops:
        return functional.dropout(x, self.parameter.dropout_param.dropout_ratio, self.training)


@layer("Softmax")
class Softmax(Layer):
    def forward(self, x: Tensor) -> Tops:
        return torch.softmax(x, self.parameter.softmax_param.axis)


@layer("BatchNorm")
class BatchNorm(Layer):
    """Running sums of mean and variance and the factor they are to be divided by; no scale and no shift."""

    blob_names = ("mean", "variance", "factor")
    mean: Tensor
    variance: Tensor
    factor: Tensor

    def build(self, parameter: Any, shapes: list[Shape]) -> None:
        channels = 1 if len(shapes[0]) == 1 else shapes[0][1]
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.zeros(channels))
        self.register_buffer("factor", torch.zeros(1))

    def forward(self, x: Tensor) -> Tops:
        own = self.parameter.batch_norm_param
        uses_global = own.use_global_stats if own.HasField("use_global_stats") else not self.training
        axes = [axis for axis in range(x.dim()) if axis != 1] if x.dim() > 1 else [0]
        along = [1, -1, *[1] * (x.dim() - 2)] if x.dim() > 1 else [-1]
        if uses_global:
            scale = torch.where(self.factor == 0, torch.zeros_like(self.factor), 1 / self.factor)
            mean, variance = self.mean * scale, self.variance * scale
        else:
            variance, mean = torch.var_mean(x, axes, correction=0)
            with torch.no_grad():
                samples = x.numel() / mean.numel()
                unbiased = samples / (samples - 1) if samples > 1 else 1.0
                fraction = own.moving_average_fraction
                self.factor.mul_(fraction).add_(1)
                self.mean.mul_(fraction).add_(mean)
                self.variance.mul_(fraction).add_(variance, alpha=unbiased)
        return (x - mean.reshape(along)) / torch.sqrt(variance.reshape(along) + own.eps)


def _spread(x: Tensor, small: Tensor, axis: int) -> Tensor:
    """`small` with its axes at `axis` of `x`, to be broadcast."""
    axis = _axis(axis, x.dim())
    return small.reshape([*[1] * axis, *small.shape, *[1] * (x.dim() - axis - small.dim())])


def _weights_shape(own: Any, shape: Shape) -> Shape:
    axis = _axis(own.axis, len(shape))
    return shape[axis:] if own.num_axes == -1 else shape[axis : axis + own.num_axes]


@layer("Scale")
class Scale(Layer):
    bottoms = (1, 2)

    def build(self, parameter: Any, shapes: list[Shape]) -> None:
        own = parameter.scale_param
        self.learns = len(shapes) == 1
        shape = _weights_shape(own, shapes[0]) if self.learns else shapes[1]
        if self.learns:
            self.weigh("weight", shape, own.filler if own.HasField("filler") else FillerParameter(value=1))
        if own.bias_term:
            self.weigh("bias", shape, own.bias_filler)

    def forward(self, x: Tensor, *factors: Tensor) -> Tops:
        own = self.parameter.scale_param
        x = x * _spread(x, self.blob("weight") if self.learns else factors[0], own.axis)
        return x + _spread(x, self.blob("bias"), own.axis) if own.bias_term else x


@layer("Bias")
class Bias(Layer):
    bottoms = (1, 2)

    def build(self, parameter: Any, shapes: list[Shape]) -> None:
        own = parameter.bias_param
        if len(shapes) == 1:
            self.weigh("bias", _weights_shape(own, shapes[0]), own.filler)

    def forward(self, x: Tensor, *terms: Tensor) -> Tops:
        return x + _spread(x, terms[0] if terms else self.blob("bias"), self.parameter.bias_param.axis)


@layer("Eltwise")
class Eltwise(Layer):
    bottoms = (2, 1000)

    def build(self, parameter: Any, shapes: list[Shape]) -> None:
        own = parameter.eltwise_param
        self.operation = enum_word(own, "operation")
        self.coefficients = list(own.coeff) or [1.0] * len(shapes)
        if len(set(shapes)) != 1:
            raise CaffeError(f"its bottoms differ in shape: {', '.join(str(list(shape)) for shape in shapes)}")
        if own.coeff and (self.operation != "SUM" or len(own.coeff) != len(shapes)):
            raise CaffeError(f"coeff has {len(own.coeff)} values; only SUM takes it, one value a bottom")

    def forward(self, *xs: Tensor) -> Tops:
        if self.operation == "PROD":
            return torch.stack(xs).prod(0)
        if self.operation == "MAX":
            return torch.stack(xs).amax(0)
        total = xs[0] * self.coefficients[0]
        for x, coefficient in zip(xs[1:], self.coefficients[1:], strict=True):
            total = total + coefficient * x
        return total


@layer("Concat")
class Concat(Layer):
    bottoms = (1, 1000)

    def forward(self, *xs: Tensor) -> Tops:
        own = self.parameter.concat_param
        return torch.cat(xs, own.concat_dim if own.HasField("concat_dim") else own.axis)


@layer("Slice")
class Slice(Layer):
    def forward(self, x: Tensor) -> Tops:
        own, tops = self.parameter.slice_param, len(self.parameter.top)
        axis = own.slice_dim if own.HasField("slice_dim") else own.axis
        if own.slice_point:
            if len(own.slice_point) != tops - 1:
                raise CaffeError(f"has {len(own.slice_point)} slice points; {tops} tops take {tops - 1}")
            return tuple(torch.tensor_split(x, list(own.slice_point), axis))
        if x.shape[axis] % tops:
            raise CaffeError(f"axis {axis} has {x.shape[axis]} entries, which {tops} tops cannot share")
        return tuple(x.chunk(tops, axis))


@layer("Split")
class Split(Layer):
    def forward(self, x: Tensor) -> Tops:
        return (x,) * len(self.parameter.top)


@layer("Silence")
class Silence(Layer):
    bottoms = (1, 1000)

    def forward(self, *xs: Tensor) -> Tops:
        return ()


@layer("Flatten")
class Flatten(Layer):
    def forward(self, x: Tensor) -> Tops:
        own = self.parameter.flatten_param
        return x.flatten(own.axis, own.end_axis)


@layer("Reshape")
class Reshape(Layer):
    def forward(self, x: Tensor) -> Tops:
        own = self.parameter.reshape_param
        start = own.axis if own.axis >= 0 else x.dim() + own.axis + 1
        end = x.dim() if own.num_axes == -1 else start + own.num_axes
        middle = [x.shape[start + place] if size == 0 else size for place, size in enumerate(own.shape.dim)]
        return x.reshape([*x.shape[:start], *middle, *x.shape[end:]])


@layer("Crop")
class Crop(Layer):
    bottoms = (2, 2)

    def forward(self, x: Tensor, like: Tensor) -> Tops:
        own = self.parameter.crop_param
        first, offsets = _axis(own.axis, x.dim()), list(own.offset) or [0]
        if len(offsets) not in (1, x.dim() - first):
            raise CaffeError(f"offset has {len(offsets)} values; allowed: 1 or {x.dim() - first}")
        for axis in range(first, x.dim()):
            offset = offsets[axis - first] if len(offsets) > 1 else offsets[0]
            if offset + like.shape[axis] > x.shape[axis]:
                raise CaffeError(f"offset {offset} and {like.shape[axis]} entries exceed axis {axis}: {x.shape[axis]}")
            x = x.narrow(axis, offset, like.shape[axis])
        return x


@layer("ArgMax")
class ArgMax(Layer):
    def forward(self, x: Tensor) -> Tops:
        own = self.parameter.argmax_param
        if own.HasField("axis"):
            values, indices = x.topk(own.top_k, own.axis)
            return values if own.out_max_val else indices.float()
        values, indices = x.flatten(1).topk(own.top_k, 1)
        found = [indices.float(), values] if own.out_max_val else [indices.float()]
        return torch.stack(found, 1)


class _Loss(Layer):
    bottoms = (2, 2)
    loss_weight = 1.0

    def normalizer(self, valid: Tensor, default: str) -> Tensor | float:
        """What the sum of the losses of `valid` [n, ...] is divided by."""
        own = self.parameter.loss_param
        method = default
        if own.HasField("normalization"):
            method = enum_word(own, "normalization")
        elif own.HasField("normalize"):
            method = "VALID" if own.normalize else "BATCH_SIZE"
        if method == "VALID":
            return valid.sum().clamp(min=1)
        return float({"FULL": valid.numel(), "BATCH_SIZE": len(valid), "NONE": 1}[method])

    def valid(self, labels: Tensor) -> Tensor:
        own = self.parameter.loss_param
        return labels != own.ignore_label if own.HasField("ignore_label") else torch.ones_like(labels, dtype=torch.bool)


@layer("SoftmaxWithLoss")
class SoftmaxWithLoss(_Loss):
    """The mean cross entropy; a second top has the probabilities."""

    def forward(self, x: Tensor, labels: Tensor) -> Tops:
        axis = _axis(self.parameter.softmax_param.axis, x.dim())
        scores = x.movedim(axis, -1)
        labels = _indices(labels, scores)
        valid = self.valid(labels)
        losses = functional.cross_entropy(
            scores.flatten(0, -2).float(), labels.where(valid, 0).flatten(), reduction="none"
        )
        loss = (losses * valid.flatten()).sum() / self.normalizer(valid, "VALID")
        return (loss, torch.softmax(x, axis)) if len(self.parameter.top) > 1 else loss


def _indices(labels: Tensor, scores: Tensor) -> Tensor:
    """Labels as whole numbers in the shape of `scores` [..., classes] without its last axis."""
    if labels.numel() != scores[..., 0].numel():
        raise CaffeError(f"there are {labels.numel()} labels for {scores[..., 0].numel()} predictions")
    return labels.reshape(scores.shape[:-1]).long()


@layer("EuclideanLoss")
class EuclideanLoss(_Loss):
    def forward(self, x: Tensor, target: Tensor) -> Tops:
        if x.numel() != target.numel():
            raise CaffeError(f"its bottoms differ in size: {list(x.shape)} and {list(target.shape)}")
        return (x - target.reshape(x.shape)).square().sum() / (2 * len(x))


@layer("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(_Loss):
    def forward(self, x: Tensor, target: Tensor) -> Tops:
        if x.numel() != target.numel():
            raise CaffeError(f"its bottoms differ in size: {list(x.shape)} and {list(target.shape)}")
        target = target.reshape(x.shape).to(x.dtype)
        valid = self.valid(target)
        losses = functional.binary_cross_entropy_with_logits(x, target.where(valid, 0), reduction="none")
        return (losses * valid).sum() / self.normalizer(valid, "BATCH_SIZE")


@layer("HingeLoss")
class HingeLoss(_Loss):
    def forward(self, x: Tensor, labels: Tensor) -> Tops:
        scores = x.flatten(1)
        signs = torch.ones_like(scores).scatter(1, _indices(labels, scores)[:, None], -1.0)
        margins = (1 + signs * scores).clamp(min=0)
        is_squared = enum_word(self.parameter.hinge_loss_param, "norm") == "L2"
        return (margins.square() if is_squared else margins).sum() / len(x)


@layer("Accuracy")
class Accuracy(Layer):
    """Fraction of labels among the `top_k` best; scores as high as that of the label count against it. A second top has
    the accuracy of each class."""

    bottoms = (2, 2)

    def forward(self, x: Tensor, labels: Tensor) -> Tops:
        own = self.parameter.accuracy_param
        scores = x.movedim(_axis(own.axis, x.dim()), -1)
        labels = _indices(labels, scores)
        valid = labels != own.ignore_label if own.HasField("ignore_label") else torch.ones_like(labels).bool()
        labels = labels.where(valid, 0)
        others = (scores >= scores.gather(-1, labels[..., None])).sum(-1) - 1
        hits = (others < own.top_k) & valid
        share = hits.sum() / valid.sum().clamp(min=1)
        if len(self.parameter.top) < 2:
            return share
        classes = functional.one_hot(labels, scores.shape[-1]) * valid[..., None]
        counts = classes.flatten(0, -2).sum(0)
        return share, (classes * hits[..., None]).flatten(0, -2).sum(0) / counts.clamp(min=1)


KNOWN_TYPES = frozenset(LAYERS) | DATA_TYPES | frozenset(UNREADABLE_TYPES)
