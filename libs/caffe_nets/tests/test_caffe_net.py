"""Reading prototxt and building nets; what is wrong is named."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caffe_nets import weights
from caffe_nets.folder import read_folder
from caffe_nets.model import CaffeModel, build
from caffe_nets.net import CaffeNet
from caffe_nets.pictures import Transform
from caffe_nets.schema import MESSAGES, CaffeError, NetParameter
from caffe_nets.solver import solver_settings
from caffe_nets.weights import load_initial, write_caffemodel
from google.protobuf import text_format

BUILTIN = Path(__file__).parents[3] / "services/models/models_service/builtin"
DATA = 'layer { name: "data" type: "Data" top: "data" top: "label" }\n'
CONVOLUTION = """layer {
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } }
}
"""
SCORES = """layer {
  name: "scores" type: "InnerProduct" bottom: "%s" top: "scores"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } }
}
"""
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label" }\n'
SHAPE = (1, 12, 12)


def write_model(folder: Path, net: str, solver: str = "", inference: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "solver.prototxt").write_text(
        f'net: "/elsewhere/my_train_test.prototxt"\nmax_iter: 5\nbase_lr: 0.01\n{solver}'
    )
    (folder / "my_train_test.prototxt").write_text(net)
    if inference:
        (folder / "deploy.prototxt").write_text(inference)
    return folder


WRONG = {
    "unknown type": (
        DATA + 'layer { name: "odd" type: "Python" bottom: "data" top: "x" python_param { module: "m" } }',
        r"my_train_test.prototxt: layer 'odd' has the unknown type 'Python'; known: AbsVal, Accuracy, .*Convolution",
    ),
    "unknown field": (
        DATA + CONVOLUTION.replace("kernel_size", "kernel_sise"),
        r"line 4, layer 'conv': ConvolutionParameter has no field kernel_sise",
    ),
    "no syntax": (DATA + "layer { name: ", r"line 2, layer"),
    "bad enum": (
        DATA + 'layer { name: "p" type: "Pooling" bottom: "data" top: "p"\n pooling_param { pool: MEDIAN } }',
        r"line 3, layer 'p': .*MEDIAN",
    ),
    "no stride": (
        DATA + CONVOLUTION.replace("kernel_size", "stride: 0 kernel_size"),
        r"layer 'conv' .*stride is 0; it must be 1 or more",
    ),
    "no dilation": (DATA + CONVOLUTION.replace("kernel_size", "dilation: 0 kernel_size"), "dilation is 0"),
    "too deep": ("layer { " * 5000, "my_train_test.prototxt: "),
    "old layers": ('layers { name: "conv" type: CONVOLUTION }', "upgrade it to `layer`"),
    "old layers with names alone": ('layers { name: "conv" }', r"line 1: `layers` is the old form of a net"),
    "dangling": (DATA + CONVOLUTION + SCORES % "pool" + LOSS, r"layer 'scores' .*bottom 'pool' is made by no layer"),
    "cycle": (
        DATA + SCORES % "late" + 'layer { name: "later" type: "ReLU" bottom: "scores" top: "late" }' + LOSS,
        r"layer 'scores' .*'late' is made by the later layer 'later'; layers stand in the order",
    ),
    "shapes": (
        DATA + CONVOLUTION + 'layer { name: "sum" type: "Eltwise" bottom: "data" bottom: "conv" top: "sum" }',
        r"layer 'sum' \(Eltwise\): its bottoms differ in shape: .*\(bottoms: data \[2, 1, 12, 12\], conv \[2",
    ),
    "too large": (DATA + CONVOLUTION.replace("size: 3", "size: 30"), r"layer 'conv' \(Convolution\)"),
    "twice": (DATA + CONVOLUTION + CONVOLUTION.replace('name: "conv"', 'name: "b"'), r"layer 'b' .*already the top"),
    "no data": (CONVOLUTION.replace('bottom: "data" ', ""), r"layer 'conv' .*has 0 bottoms"),
    "hdf5": (
        'layer { name: "data" type: "HDF5Data" top: "data" }',
        r"layer 'data' \(HDF5Data\): HDF5 files are not read",
    ),
    "few outputs": (
        DATA + (SCORES % "data").replace("10", "5") + LOSS,
        r"layer 'scores' .*5 scores, and the dataset has 10 labels; set num_output to 10",
    ),
    "crop": (DATA.replace("}", "transform_param { crop_size: 40 } }"), r"layer 'data' .*crop_size is 40"),
    "filler": (DATA + CONVOLUTION.replace("xavier", "he"), r"layer 'conv' .*filler type 'he'"),
    "both rules": (
        DATA.replace("}", "include { phase: TRAIN } exclude { phase: TEST } }"),
        r"layer 'data' .*include or exclude, not both",
    ),
}


def test_a_mark_before_the_text_is_none_of_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "\ufeff# comment\r\n" + (DATA + SCORES % "data" + LOSS).replace("\n", "\r\n"))
    assert build(folder, SHAPE, 10).plans["train"].logits == "scores"


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, name: str) -> None:
    net, message = WRONG[name]
    with pytest.raises(CaffeError, match=message):
        build(write_model(tmp_path, net), SHAPE, 10)


def test_a_folder_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match=r"no \*solver.prototxt"):
        read_folder(tmp_path)
    (tmp_path / "solver.prototxt").write_text("max_iter: 5")
    with pytest.raises(CaffeError, match=r"no \*train_test.prototxt"):
        read_folder(tmp_path)
    (tmp_path / "solver.prototxt").write_text("max_iter: 5\nspeed: 3")
    with pytest.raises(CaffeError, match="line 2: SolverParameter has no field speed"):
        read_folder(tmp_path)
    (tmp_path / "solver.prototxt").write_text('net_param { layers { name: "conv" } }')
    with pytest.raises(CaffeError, match="upgrade it to `layer`"):
        read_folder(tmp_path)


def test_only_files_of_the_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "secret.prototxt").write_text(DATA)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "solver.prototxt").write_text('net: "../secret.prototxt" max_iter: 1')
    with pytest.raises(CaffeError, match="no secret"):
        read_folder(folder)


def test_rules_choose_the_layers_of_a_phase() -> None:
    text = """
    layer { name: "train" type: "Input" top: "data" include { phase: TRAIN } }
    layer { name: "deep" type: "Input" top: "data" include { phase: TEST min_level: 2 not_stage: "small" } }
    layer { name: "staged" type: "Input" top: "data" include { stage: "small" } }
    layer { name: "always" type: "ReLU" bottom: "data" top: "data" exclude { phase: TRAIN } }
    """
    net = text_format.Parse(text, NetParameter())

    def names(**state: object) -> list[str]:
        model = CaffeNet()
        plan = model.add("test", net, MESSAGES["NetState"](**state), SHAPE)
        return [step.name for step in plan.steps]

    assert names(phase=0) == []
    assert names(phase=1, level=2) == ["always"]
    assert names(phase=1, stage=["small"]) == ["always"]
    with pytest.raises(CaffeError, match="bottom 'data' is made by no layer"):
        names(phase=1, level=1)


def test_multipliers_sharing_and_frozen_weights(tmp_path: Path) -> None:
    branch = """layer {
      name: "%s" type: "InnerProduct" bottom: "data" top: "%s"
      param { name: "w" lr_mult: 2 decay_mult: 0.5 } param { lr_mult: 0 }
      inner_product_param { num_output: 10 weight_filler { type: "xavier" } }
    }
    """
    join = 'layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b" top: "scores" }'
    model = build(write_model(tmp_path, DATA + branch % ("a", "a") + branch % ("b", "b") + join + LOSS), SHAPE, 10)
    (group,) = model.parameter_groups()
    assert (group["lr_mult"], group["decay_mult"], len(group["params"])) == (2, 0.5, 1)
    assert model.layers["a"].weight is model.layers["b"].weight
    assert not model.layers["a"].bias.requires_grad


def test_phases_share_weights_where_layers_differ(tmp_path: Path) -> None:
    norm = 'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" include { phase: %s } '
    norm += "batch_norm_param { %s } }\n"
    net = DATA + CONVOLUTION + norm % ("TRAIN", "use_global_stats: false") + norm % ("TEST", "use_global_stats: true")
    model = build(write_model(tmp_path, net + SCORES % "conv" + LOSS), SHAPE, 10)
    model.train()
    images, labels = torch.randn(8, *SHAPE), torch.arange(8)
    # Building leaves no trace in the statistics.
    assert float(model.layers["bn"].factor) == 0
    model(images, labels)
    assert float(model.layers["bn"].factor) == 1
    test_module = model.layers["bn@test"]
    assert test_module.mean is model.layers["bn"].mean
    model.double()
    assert test_module.mean is model.layers["bn"].mean


def test_loss_weights_add_up(tmp_path: Path) -> None:
    second = LOSS.replace('"loss"', '"aux"').replace("}", "loss_weight: 0.3 }")
    model = build(write_model(tmp_path, DATA + SCORES % "data" + LOSS + second), SHAPE, 10).train()
    images, labels = torch.randn(4, *SHAPE), torch.arange(4)
    loss, logits = model(images, labels)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert float(loss.detach()) == pytest.approx(1.3 * float(expected.detach()), rel=1e-5)


def test_transform_crops_mirrors_and_scales() -> None:
    parameter = MESSAGES["TransformationParameter"](scale=0.5, mirror=True, crop_size=4, mean_file="m")
    mean = torch.arange(36.0).reshape(1, 6, 6)
    transform = Transform(parameter, (1, 6, 6), mean)
    pixels = torch.rand(16, 1, 6, 6) * 255
    middle = transform(pixels)
    torch.testing.assert_close(middle, (pixels - mean)[:, :, 1:5, 1:5] * 0.5)
    torch.testing.assert_close((pixels[:, :, 1:5, 1:5] - transform.middle_mean) * 0.5, middle)
    drawn = transform(pixels, torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, transform(pixels, torch.Generator().manual_seed(3)))
    windows = ((pixels - mean) * 0.5).unfold(2, 4, 1).unfold(3, 4, 1).reshape(16, 9, 4, 4)
    both = torch.cat([windows, windows.flip(-1)], 1)
    matches = (both == drawn).flatten(2).all(2)
    assert matches.any(1).all()
    assert len(set(matches.int().argmax(1).tolist())) > 4
    with pytest.raises(CaffeError, match="the dataset has no mean"):
        Transform(parameter, (1, 6, 6), None)


def test_caffemodel_round_trip_and_what_does_not_fit(tmp_path: Path) -> None:
    norm = 'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }\n'
    folder = write_model(tmp_path / "m", DATA + CONVOLUTION + norm + SCORES % "conv" + LOSS)
    first, second = build(folder, SHAPE, 10), build(folder, SHAPE, 10)
    first.train()
    first(torch.randn(4, *SHAPE), torch.arange(4))
    file = tmp_path / "net.caffemodel"
    write_caffemodel(first, first.state_dict(), file, "net")
    message = NetParameter.FromString(file.read_bytes())
    assert [(layer.name, [list(b.shape.dim) for b in layer.blobs]) for layer in message.layer if layer.blobs] == [
        ("conv", [[4, 1, 3, 3], [4]]),
        ("bn", [[4], [4], [1]]),
        ("scores", [[10, 400], [10]]),
    ]
    assert load_initial(second, file) == ["conv", "bn", "scores"]
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value)
    other = build(write_model(tmp_path / "o", DATA + CONVOLUTION.replace("put: 4", "put: 6")), SHAPE, 10)
    with pytest.raises(CaffeError, match=r"layer 'conv': weight is \[4, 1, 3, 3\]; in the net it is \[6, 1, 3, 3\]"):
        load_initial(other, file)
    fresh = build(
        write_model(tmp_path / "f", DATA + SCORES.replace('"scores" type', '"new" type') % "data" + LOSS), SHAPE, 10
    )
    with pytest.raises(CaffeError, match="no weights for any layer of the net"):
        load_initial(fresh, file)
    file.write_bytes(b"\xff\xff\xff")
    with pytest.raises(CaffeError, match=r"not a \.caffemodel"):
        load_initial(second, file)
    torch.save(first.state_dict(), tmp_path / "weights.pth")
    third = build(folder, SHAPE, 10)
    load_initial(third, tmp_path / "weights.pth")
    torch.testing.assert_close(third.layers["conv"].weight, first.layers["conv"].weight)


@pytest.mark.parametrize("oldest", [False, True], ids=["V1", "V0"])
def test_published_caffemodels_in_the_old_formats_are_read(tmp_path: Path, oldest: bool) -> None:
    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return _varint(number << 3) + _varint(value)
        return _varint(number << 3 | 2) + _varint(len(value)) + value

    def blob(values: np.ndarray[Any, Any], *sides: int) -> bytes:
        shape = b"".join(field(number, side) for number, side in enumerate(sides, start=1))
        return shape + field(5, values.astype("<f4").tobytes())

    # Numbers of BVLC's caffe.proto: NetParameter.layers 2; V1LayerParameter layer 1, bottom 2, name 4, type 5, blobs 6;
    # V0LayerParameter name 1, type 2, blobs 50.
    weight, bias = np.arange(1440.0).reshape(10, 144), np.arange(10.0)
    blobs = blob(weight, 1, 1, 10, 144), blob(bias, 1, 1, 1, 10)
    if oldest:
        inner = field(1, b"scores") + field(2, b"innerproduct") + b"".join(field(50, each) for each in blobs)
        layer = field(1, inner) + field(2, b"data")
    else:
        layer = field(2, b"data") + field(4, b"scores") + field(5, 14) + b"".join(field(6, each) for each in blobs)
    (tmp_path / "old.caffemodel").write_bytes(field(1, b"CaffeNet") + field(2, layer))
    net = build(write_model(tmp_path / "m", DATA + SCORES % "data" + LOSS), SHAPE, 10)
    assert load_initial(net, tmp_path / "old.caffemodel") == ["scores"]
    np.testing.assert_array_equal(net.layers["scores"].weight.detach().numpy(), weight)
    np.testing.assert_array_equal(net.layers["scores"].bias.detach().numpy(), bias)


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def test_caffemodels_cost_little_more_than_their_weights(tmp_path: Path) -> None:
    wide = (SCORES % "data").replace("10", "3000")
    first, second = (build(write_model(tmp_path / "m", DATA + wide + LOSS), SHAPE, 10) for _ in range(2))
    file = tmp_path / "net.caffemodel"
    # What torch and protobuf keep is not seen here, only what Python does; as Python numbers it would be eightfold.
    tracemalloc.start()
    try:
        write_caffemodel(first, first.state_dict(), file)
        _, writing = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        load_initial(second, file)
        _, reading = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert writing < 3 * file.stat().st_size
    assert reading < 3 * file.stat().st_size
    (layer,) = (layer for layer in NetParameter.FromString(file.read_bytes()).layer if layer.blobs)
    weight = first.layers["scores"].weight.detach()
    assert list(layer.blobs[0].data) == weight.flatten().tolist()
    torch.testing.assert_close(second.layers["scores"].weight.detach(), weight, rtol=0, atol=0)


def test_a_caffemodel_that_caffe_could_not_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = build(write_model(tmp_path / "m", DATA + SCORES % "data" + LOSS), SHAPE, 10)
    monkeypatch.setattr(weights, "MAX_CAFFEMODEL_BYTES", 5799)
    with pytest.raises(CaffeError, match="weights are 5800 bytes; Caffe reads no file of more than 5799"):
        write_caffemodel(net, net.state_dict(), tmp_path / "net.caffemodel")
    assert not list(tmp_path.glob("*caffemodel"))
    monkeypatch.setattr(weights, "MAX_CAFFEMODEL_BYTES", 5800)
    write_caffemodel(net, net.state_dict(), tmp_path / "net.caffemodel")


@pytest.mark.parametrize(("held", "kind"), [([1, 2], "list"), (torch.zeros(3), "Tensor")], ids=["list", "tensor"])
def test_a_pth_without_a_state_dict_is_named(tmp_path: Path, held: Any, kind: str) -> None:
    net = build(write_model(tmp_path / "m", DATA + SCORES % "data" + LOSS), SHAPE, 10)
    torch.save(held, tmp_path / "odd.pth")
    with pytest.raises(CaffeError, match=rf"odd\.pth holds a {kind}; allowed: a state dict"):
        load_initial(net, tmp_path / "odd.pth")


def test_solver_fields_give_way_to_hyperparameters(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path, DATA, 'type: "Nesterov" lr_policy: "multistep" stepvalue: 3 stepvalue: 4 momentum: 0.8'
    )
    solver = read_folder(folder).solver
    own = solver_settings(solver, {})
    assert (own["type"], own["stepvalue"], own["max_iter"], own["base_lr"]) == (
        "Nesterov",
        [3, 4],
        5,
        pytest.approx(0.01),
    )
    given = solver_settings(solver, {"solvertype": "SGD", "learningrate": 0.5, "stepvalues": "7, 9", "momentum": 0})
    assert (given["type"], given["base_lr"], given["stepvalue"]) == ("SGD", 0.5, [7, 9])
    assert given["momentum"] == 0
    adam = solver_settings(solver, {"solvertype": "Adam", "momentum": 0.7, "beta1": 0.6, "beta2": 0.5, "epsilon": 0.1})
    assert (adam["momentum"], adam["momentum2"], adam["delta"]) == (0.6, 0.5, 0.1)


@pytest.mark.parametrize(
    "given",
    [{"epsilon": 0.1}, {"power": 2.0}, {"stepsize": 7}, {"epoch": 3}, {"nesterov": True}],
    ids=lambda given: next(iter(given)),
)
def test_a_hyperparameter_that_solver_and_policy_lack_changes_nothing(tmp_path: Path, given: dict[str, Any]) -> None:
    folder = write_model(
        tmp_path, DATA, 'type: "Nesterov" lr_policy: "multistep" stepvalue: 3 gamma: 0.5 momentum: 0.8'
    )
    solver = read_folder(folder).solver
    assert solver_settings(solver, given) == solver_settings(solver, {})
    assert solver_settings(solver, {"momentum": 0.1}) != solver_settings(solver, {})


def conv(name: str, bottom: str, outputs: int, options: str) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param {{ '
        f'num_output: {outputs} {options} weight_filler {{ type: "msra" }} }} }}\n'
    )


def in_place(kind: str, blob: str) -> str:
    options = "scale_param { bias_term: true }" if kind == "Scale" else ""
    return f'layer {{ name: "{kind}/{blob}" type: "{kind}" bottom: "{blob}" top: "{blob}" {options} }}\n'


def alexnet() -> str:
    lrn = 'layer {{ name: "norm{0}" type: "LRN" bottom: "conv{0}" top: "norm{0}" lrn_param {{ alpha: 0.0001 }} }}\n'
    pool = (
        'layer {{ name: "pool{0}" type: "Pooling" bottom: "norm{0}" top: "pool{0}" '
        "pooling_param {{ kernel_size: 3 stride: 2 }} }}\n"
    )
    text = DATA + conv("conv1", "data", 8, "kernel_size: 5 stride: 2") + in_place("ReLU", "conv1")
    text += lrn.format(1) + pool.format(1)
    text += conv("conv2", "pool1", 16, "kernel_size: 5 pad: 2 group: 2") + in_place("ReLU", "conv2")
    text += lrn.format(2) + pool.format(2) + SCORES % "pool2"
    return text + in_place("Dropout", "scores") + LOSS


def resnet() -> str:
    def normed(blob: str) -> str:
        return in_place("BatchNorm", blob) + in_place("Scale", blob)

    text = DATA + conv("stem", "data", 8, "kernel_size: 3 pad: 1 bias_term: false") + normed("stem")
    text += in_place("ReLU", "stem") + conv("branch2a", "stem", 16, "kernel_size: 3 stride: 2 pad: 1 bias_term: false")
    text += (
        normed("branch2a") + in_place("ReLU", "branch2a") + conv("branch2b", "branch2a", 16, "kernel_size: 3 pad: 1")
    )
    text += normed("branch2b") + conv("branch1", "stem", 16, "kernel_size: 1 stride: 2") + normed("branch1")
    text += 'layer { name: "res" type: "Eltwise" bottom: "branch1" bottom: "branch2b" top: "res" }\n' + in_place(
        "ReLU", "res"
    )
    text += 'layer { name: "pool" type: "Pooling" bottom: "res" top: "pool" '
    text += "pooling_param { pool: AVE global_pooling: true } }\n"
    return text + SCORES % "pool" + LOSS


@pytest.mark.parametrize("net", [alexnet(), resnet()], ids=["alexnet", "resnet"])
def test_known_architectures_learn(tmp_path: Path, net: str) -> None:
    torch.manual_seed(0)
    model = build(write_model(tmp_path, net), (3, 32, 32), 10).train()
    images, labels = torch.randn(10, 3, 32, 32), torch.arange(10)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for _ in range(5):
        loss, _ = model(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("template", ["caffe-lenet", "caffe-cifar"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 48)])
def test_templates_take_the_size_of_the_dataset(template: str, shape: tuple[int, int, int]) -> None:
    model: CaffeModel = build(BUILTIN / template, shape, 7)
    model.takes_pixels = True
    pixels = torch.rand(2, *shape) * 255
    scores = model.eval()(pixels)
    assert scores.shape == (2, 7)
    # The net for inference answers what that of the test phase does, from the same weights.
    transformed = model.test_transform(pixels)
    _, logits = model.run(model.plans["test"], transformed)
    torch.testing.assert_close(scores, logits[:, :7])
    assert not [key for key in model.state_dict() if "@" in key]


@pytest.mark.parametrize(
    ("template", "shape", "weights"), [("caffe-lenet", (1, 28, 28), 431_080), ("caffe-cifar", (3, 32, 32), 145_578)]
)
def test_templates_have_the_published_number_of_weights(
    template: str, shape: tuple[int, int, int], weights: int
) -> None:
    assert sum(weight.numel() for weight in build(BUILTIN / template, shape, 10).parameters()) == weights
