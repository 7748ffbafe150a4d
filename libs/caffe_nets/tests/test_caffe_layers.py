"""Every layer against torch's own functions or the published formula written out in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from caffe_nets.fillers import fill
from caffe_nets.layers import DATA_TYPES, KNOWN_TYPES, LAYERS, UNREADABLE_TYPES
from caffe_nets.schema import CaffeError, FillerParameter, LayerParameter
from google.protobuf import text_format
from torch import Tensor
from torch.nn import functional


def make(text: str, *bottoms: Tensor, training: bool = False) -> Any:
    parameter = text_format.Parse(text, LayerParameter())
    return LAYERS[parameter.type](parameter, [tuple(bottom.shape) for bottom in bottoms]).train(training)


def run(text: str, *bottoms: Tensor, training: bool = False) -> Any:
    return make(text, *bottoms, training=training)(*bottoms)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pooled(x: np.ndarray, method: str, kernel: int, stride: int, pad: int) -> np.ndarray:
    """Caffe's pooling as its loops are published."""
    samples, channels, height, width = x.shape

    def size(side: int) -> int:
        count = math.ceil((side + 2 * pad - kernel) / stride) + 1
        return count - 1 if pad and (count - 1) * stride >= side + pad else count

    out = np.zeros((samples, channels, size(height), size(width)), np.float32)
    for row in range(out.shape[2]):
        for column in range(out.shape[3]):
            top, left = row * stride - pad, column * stride - pad
            bottom, right = min(top + kernel, height + pad), min(left + kernel, width + pad)
            area = (bottom - top) * (right - left)
            window = x[:, :, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
            out[:, :, row, column] = window.max((2, 3)) if method == "MAX" else window.sum((2, 3)) / area
    return out


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize(
    ("side", "kernel", "stride", "pad"),
    [(8, 2, 2, 0), (32, 3, 2, 0), (7, 2, 2, 0), (7, 3, 2, 1), (6, 3, 3, 1), (5, 3, 1, 1)],
)
def test_pooling_rounds_up_and_counts_padding_as_caffe(
    method: str, side: int, kernel: int, stride: int, pad: int
) -> None:
    x = rand(2, 3, side, side + 1)
    text = f'type: "Pooling" pooling_param {{ pool: {method} kernel_size: {kernel} stride: {stride} pad: {pad} }}'
    expected = pooled(x.numpy(), method, kernel, stride, pad)
    np.testing.assert_allclose(run(text, x).numpy(), expected, atol=1e-6)


def test_pooling_may_round_down_or_take_all() -> None:
    x = rand(1, 2, 7, 7)
    text = 'type: "Pooling" pooling_param {{ kernel_size: 2 stride: 2 round_mode: {} }}'
    assert run(text.format("FLOOR"), x).shape == (1, 2, 3, 3)
    assert run(text.format("CEIL"), x).shape == (1, 2, 4, 4)
    mean = run('type: "Pooling" pooling_param { pool: AVE global_pooling: true }', x)
    torch.testing.assert_close(mean, x.mean((2, 3), keepdim=True))
    with pytest.raises(CaffeError, match="STOCHASTIC"):
        run('type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 2 }', x)


def test_convolution_in_all_spellings() -> None:
    x = rand(2, 4, 9, 11)
    layer = make(
        'type: "Convolution" convolution_param { num_output: 6 group: 2 kernel_h: 3 kernel_w: 5 pad_h: 1 pad_w: 2 '
        'stride: 2 dilation: 1 dilation: 2 weight_filler { type: "msra" } bias_filler { value: 0.5 } }',
        x,
    )
    assert layer.weight.shape == (6, 2, 3, 5)
    expected = functional.conv2d(x, layer.weight, torch.full((6,), 0.5), (2, 2), (1, 2), (1, 2), 2)
    torch.testing.assert_close(layer(x), expected)
    bare = make('type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 bias_term: false }', x)
    assert bare.blob_names == ("weight",)


def test_deconvolution() -> None:
    x = rand(2, 4, 5, 5)
    text = (
        'type: "Deconvolution" convolution_param { num_output: 4 group: 4 kernel_size: 4 stride: 2 pad: 1 '
        'bias_term: false weight_filler { type: "bilinear" } }'
    )
    layer = make(text, x)
    assert layer.weight.shape == (4, 1, 4, 4)
    expected = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    # Bilinear upsampling, except at the border, where Caffe's sees zeros.
    torch.testing.assert_close(layer(x)[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])


@pytest.mark.parametrize("transpose", [False, True])
def test_inner_product(transpose: bool) -> None:
    x = rand(2, 3, 4, 5)
    text = f'type: "InnerProduct" inner_product_param {{ num_output: 7 axis: 2 transpose: {str(transpose).lower()} '
    layer = make(text + 'weight_filler { type: "xavier" } }', x)
    weight = layer.weight.T if not transpose else layer.weight
    assert weight.shape == (20, 7)
    torch.testing.assert_close(layer(x), x.reshape(2, 3, 20) @ weight)


POSITIVE = rand(2, 3, 4, 4).abs() + 0.1
SIMPLE = {
    'type: "ReLU"': torch.relu,
    'type: "ReLU" relu_param { negative_slope: 0.1 }': lambda x: torch.where(x > 0, x, 0.1 * x),
    'type: "PReLU"': lambda x: torch.where(x > 0, x, 0.25 * x),
    'type: "ELU" elu_param { alpha: 2 }': lambda x: torch.where(x > 0, x, 2 * (x.exp() - 1)),
    'type: "Sigmoid"': lambda x: 1 / (1 + (-x).exp()),
    'type: "TanH"': torch.tanh,
    'type: "AbsVal"': torch.abs,
    'type: "BNLL"': lambda x: (1 + x.exp()).log(),
    'type: "Power" power_param { power: 2 scale: 3 shift: 1 }': lambda x: (1 + 3 * x) ** 2,
    'type: "Exp"': torch.exp,
    'type: "Exp" exp_param { base: 2 scale: 3 shift: 1 }': lambda x: 2 ** (1 + 3 * x),
    'type: "Log" log_param { base: 10 shift: 9 }': lambda x: (9 + x).log10(),
    'type: "Softmax"': lambda x: x.exp() / x.exp().sum(1, keepdim=True),
    'type: "Flatten"': lambda x: x.reshape(len(x), -1),
    'type: "Dropout"': lambda x: x,
    'type: "Reshape" reshape_param { shape { dim: 0 dim: -1 dim: 2 } }': lambda x: x.reshape(2, -1, 2),
    'type: "Reshape" reshape_param { shape { dim: 2 dim: 2 } axis: 2 num_axes: 1 }': lambda x: x.reshape(2, 3, 2, 2, 4),
    'type: "ArgMax" argmax_param { axis: 1 }': lambda x: x.argmax(1, keepdim=True).float(),
    'type: "ArgMax" argmax_param { top_k: 2 out_max_val: true }': lambda x: torch.stack(
        [x.flatten(1).topk(2, 1)[1].float(), x.flatten(1).topk(2, 1)[0]], 1
    ),
    'type: "Scale" scale_param { bias_term: true filler { value: 2 } bias_filler { value: 1 } }': lambda x: 2 * x + 1,
    'type: "Bias" bias_param { filler { value: 3 } }': lambda x: x + 3,
}


@pytest.mark.parametrize("text", SIMPLE)
def test_layers_of_one_bottom(text: str) -> None:
    x = POSITIVE if "Log" in text else rand(2, 3, 4, 4)
    torch.testing.assert_close(run(text, x), SIMPLE[text](x))


def test_dropout_keeps_the_mean() -> None:
    out = run('type: "Dropout" dropout_param { dropout_ratio: 0.75 }', torch.ones(10000), training=True)
    assert set(out.unique().tolist()) == {0.0, 4.0}
    assert float(out.mean()) == pytest.approx(1, abs=0.1)


def test_lrn_across_channels_and_within() -> None:
    x = rand(2, 7, 6, 6)
    squares = x.numpy() ** 2
    across = np.stack([squares[:, max(0, c - 1) : c + 2].sum(1) for c in range(7)], 1)
    text = 'type: "LRN" lrn_param { local_size: 3 alpha: 0.5 beta: 0.75 k: 2 norm_region: %s }'
    found = run(text % "ACROSS_CHANNELS", x).numpy()
    np.testing.assert_allclose(found, x.numpy() / (2 + 0.5 / 3 * across) ** 0.75, rtol=1e-4, atol=1e-6)
    padded = np.pad(squares, ((0, 0), (0, 0), (1, 1), (1, 1)))
    within = sum(padded[:, :, row : row + 6, column : column + 6] for row in range(3) for column in range(3))
    found = run(text % "WITHIN_CHANNEL", x).numpy()
    np.testing.assert_allclose(found, x.numpy() / (1 + 0.5 / 9 * within) ** 0.75, rtol=1e-4, atol=1e-6)


def test_batch_norm_keeps_sums_and_their_factor() -> None:
    layer = make('type: "BatchNorm" batch_norm_param { moving_average_fraction: 0.9 eps: 0.001 }', rand(8, 3, 2, 2))
    mean, variance, factor = np.zeros(3), np.zeros(3), 0.0
    layer.train()
    for seed in range(4):
        x = rand(8, 3, 2, 2, seed=seed) * 2 + 5
        values = x.numpy().astype(np.float64)
        expected = (values - values.mean((0, 2, 3), keepdims=True)) / np.sqrt(
            values.var((0, 2, 3), keepdims=True) + 0.001
        )
        np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-4)
        factor = factor * 0.9 + 1
        mean = mean * 0.9 + values.mean((0, 2, 3))
        variance = variance * 0.9 + values.var((0, 2, 3)) * 32 / 31
    np.testing.assert_allclose(layer.mean.numpy(), mean, rtol=1e-4)
    np.testing.assert_allclose(layer.variance.numpy(), variance, rtol=1e-4)
    assert float(layer.factor) == pytest.approx(factor, rel=1e-5)
    layer.eval()
    expected = (values - (mean / factor)[None, :, None, None]) / np.sqrt(variance / factor + 0.001)[None, :, None, None]
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-3)


def test_layers_of_several_bottoms() -> None:
    a, b = rand(2, 3, 4, 4), rand(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(run('type: "Eltwise" eltwise_param { coeff: 1 coeff: -2 }', a, b), a - 2 * b)
    torch.testing.assert_close(run('type: "Eltwise" eltwise_param { operation: PROD }', a, b), a * b)
    torch.testing.assert_close(run('type: "Eltwise" eltwise_param { operation: MAX }', a, b), torch.maximum(a, b))
    assert run('type: "Concat"', a, b).shape == (2, 6, 4, 4)
    assert run('type: "Concat" concat_param { axis: 0 }', a, b).shape == (4, 3, 4, 4)
    first, second = run('type: "Slice" top: "a" top: "b" slice_param { slice_point: 1 }', a)
    torch.testing.assert_close(torch.cat([first, second], 1), a)
    assert (first.shape[1], second.shape[1]) == (1, 2)
    assert len(run('type: "Split" top: "a" top: "b"', a)) == 2
    assert run('type: "Silence"', a, b) == ()
    small = torch.zeros(2, 3, 2, 3)
    torch.testing.assert_close(run('type: "Crop" crop_param { offset: 1 }', a, small), a[:, :, 1:3, 1:4])
    factors = rand(2, 3)
    torch.testing.assert_close(run('type: "Scale" scale_param { axis: 0 }', a, factors), a * factors[:, :, None, None])
    with pytest.raises(CaffeError, match="differ in shape"):
        run('type: "Eltwise"', a, small)


@pytest.mark.parametrize(
    ("options", "divisor"),
    [
        ("", 5),
        ("normalization: FULL", 6),
        ("normalization: BATCH_SIZE", 2),
        ("normalization: NONE", 1),
        ("normalize: false", 2),
    ],
)
def test_softmax_loss_normalisation(options: str, divisor: int) -> None:
    x = rand(2, 4, 3)
    labels = torch.tensor([[0, 1, 3], [2, 255, 1]])
    text = f'type: "SoftmaxWithLoss" loss_param {{ ignore_label: 255 {options} }}'
    scores = x.numpy().astype(np.float64)
    logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    total = -sum(logs[n, label, p] for n in range(2) for p, label in enumerate(labels[n].tolist()) if label != 255)
    assert float(run(text, x, labels)) == pytest.approx(total / divisor, rel=1e-5)


def test_other_losses() -> None:
    x, y = rand(3, 4), rand(3, 4, seed=1)
    assert float(run('type: "EuclideanLoss"', x, y)) == pytest.approx(float(((x - y) ** 2).sum() / 6))
    target = (y > 0).float()
    p = torch.sigmoid(x)
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).sum() / 3
    assert float(run('type: "SigmoidCrossEntropyLoss"', x, target)) == pytest.approx(float(expected), rel=1e-5)
    labels = torch.tensor([0, 3, 1])
    signs = -torch.ones(3, 4)
    signs[range(3), labels] = 1
    margins = (1 - signs * x).clamp(min=0)
    assert float(run('type: "HingeLoss"', x, labels)) == pytest.approx(float(margins.sum() / 3))
    squared = run('type: "HingeLoss" hinge_loss_param { norm: L2 }', x, labels)
    assert float(squared) == pytest.approx(float((margins**2).sum() / 3))


def test_accuracy_counts_ties_against_the_label() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    labels = torch.tensor([0, 0, 2, 255])
    text = 'type: "Accuracy" accuracy_param { ignore_label: 255 top_k: %d }'
    assert float(run(text % 1, x, labels)) == pytest.approx(1 / 3)
    assert float(run(text % 2, x, labels)) == pytest.approx(1)


def test_fillers() -> None:
    torch.manual_seed(0)
    shape = (200, 50, 3, 3)

    def made(**options: Any) -> Tensor:
        return fill(shape, FillerParameter(**options))

    assert float(made(value=2.5).unique()) == 2.5
    assert float(made(type="xavier").abs().max()) == pytest.approx(math.sqrt(3 / 450), rel=1e-3)
    assert float(made(type="xavier", variance_norm=1).abs().max()) == pytest.approx(math.sqrt(3 / 1800), rel=1e-3)
    assert float(made(type="msra", variance_norm=2).std()) == pytest.approx(math.sqrt(2 / 1125), rel=0.02)
    assert float(made(type="gaussian", mean=1, std=0.1).mean()) == pytest.approx(1, abs=0.01)
    assert float((made(type="gaussian", sparse=20) != 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    uniform = made(type="uniform", min=-2, max=-1)
    assert -2 <= float(uniform.min()) <= float(uniform.max()) <= -1
    torch.testing.assert_close(made(type="positive_unitball").flatten(1).sum(1), torch.ones(200))
    with pytest.raises(CaffeError, match=r"'he' is not known; known: constant"):
        made(type="he")


def test_every_known_type_is_built_or_refused() -> None:
    assert set(LAYERS) | DATA_TYPES | set(UNREADABLE_TYPES) == KNOWN_TYPES
