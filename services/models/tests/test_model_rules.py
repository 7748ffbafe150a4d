"""What hyperparameters and words may hold."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
from models_service.domain.hyperparameters import FIELDS, POLICIES, SOLVERS, check_complete, read_hyperparameters
from models_service.domain.template import check_files
from models_service.usecases.frameworks import list_frameworks
from models_service.usecases.weights import choose_name
from servicekit.errors import Code, ServiceError


def test_all_fields_are_known() -> None:
    assert len(FIELDS) == 43
    assert len(SOLVERS) == 18
    assert len(POLICIES) == 14


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learningrate", 0.0),
        ("learningrate", -0.1),
        ("learningrate", math.nan),
        ("learningrate", math.inf),
        ("learningrate", "NaN"),
        ("epoch", 0),
        ("epoch", 1.5),
        ("epoch", True),
        ("maxiteration", -3),
        ("momentum", -1),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("patience", -1),
        ("solvertype", "Adamm"),
        ("solvertype", "Nesterov"),
        ("lrpolicy", "sigmoid"),
        ("mode", "median"),
        ("threshold_mode", "relative"),
        ("staircase", "maybe"),
        ("amsgrad", "yes"),
        ("stepvalues", "10,x"),
        ("stepvalues", "9" * 5000),
        ("solvertype", " " * 100_000),
        ("stepvalues", "20,10"),
    ],
)
def test_bad_values_name_their_field(name: str, value: Any) -> None:
    with pytest.raises(ServiceError) as caught:
        read_hyperparameters({name: value}, "PyTorch")
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.metadata["field"] == f"hyperparameter.{name}"
    assert caught.value.metadata["allowed"] in caught.value.message


@pytest.mark.parametrize(
    ("framework", "given", "kept"),
    [
        ("PyTorch", "Adam", "Adam"),
        ("PyTorch", "adam (Cf, TF and PT)", "Adam"),
        ("PyTorch", "AdaGrad", "Adagrad"),
        ("Caffe", "adagrad", "AdaGrad"),
        ("TensorFlow", "MOMENTUM (TF)", "Momentum"),
        ("PyTorch", "sgd (Cf and PT)", "SGD"),
    ],
)
def test_words_are_read_in_any_case_and_with_their_marks(framework: str, given: str, kept: str) -> None:
    assert read_hyperparameters({"solvertype": given}, framework) == {"solvertype": kept}


@pytest.mark.parametrize(
    ("framework", "given", "message"),
    [
        ("PyTorch", {"lrpolicy": "step"}, "hyperparameter.stepsize.*lrpolicy step needs it"),
        ("PyTorch", {"lrpolicy": "step", "stepsize": 0}, "hyperparameter.stepsize: 0"),
        ("PyTorch", {"lrpolicy": "multistep"}, "hyperparameter.stepvalues"),
        ("PyTorch", {"nesterov": True}, "hyperparameter.momentum.*nesterov needs it"),
        ("PyTorch", {"nesterov": True, "momentum": 0.5, "dampening": 0.1}, "hyperparameter.dampening: 0.1"),
        ("TensorFlow", {"lrpolicy": "exponential", "decaysteps": 5}, "hyperparameter.decayrate"),
        ("TensorFlow", {"lrpolicy": "inversetime", "decayrate": 5}, "hyperparameter.decaysteps"),
        ("TensorFlow", {"lrpolicy": "naturalexp"}, "hyperparameter.decaysteps"),
        ("TensorFlow", {"lrpolicy": "polynomial"}, "hyperparameter.decaysteps"),
        ("TensorFlow", {"lrpolicy": "piecewise", "decayrate": 0.1}, "hyperparameter.stepvalues"),
        ("TensorFlow", {"momentum": 1.5}, "hyperparameter.momentum: 1.5"),
    ],
)
def test_what_a_value_needs_of_others_is_asked_for(framework: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        check_complete(given, framework)


@pytest.mark.parametrize(
    ("framework", "given"),
    [
        ("PyTorch", {}),
        ("PyTorch", {"lrpolicy": "step", "stepsize": 2}),
        ("PyTorch", {"nesterov": True, "momentum": 0.5, "dampening": 0.0}),
        ("PyTorch", {"nesterov": False}),
        ("Caffe", {"lrpolicy": "step"}),
        ("TensorFlow", {"lrpolicy": "piecewise", "decayrate": 0.1, "stepvalues": "5"}),
    ],
)
def test_what_is_complete_is_taken(framework: str, given: dict[str, Any]) -> None:
    check_complete(given, framework)


def test_values_are_kept_as_given() -> None:
    given = {"learningrate": 0.01, "epoch": 3, "nesterov": True, "lrpolicy": "Step", "mode": "", "stepvalues": "5, 10"}
    assert read_hyperparameters(given, "PyTorch") == {
        "learningrate": 0.01,
        "epoch": 3,
        "nesterov": True,
        "lrpolicy": "step",
        "stepvalues": "5,10",
    }


@pytest.mark.parametrize(
    ("framework", "files", "good"),
    [
        ("PyTorch", {"main.py"}, True),
        ("PyTorch", {"elastic-main.py"}, True),
        ("PyTorch", {"train.py", "sub/main.py"}, False),
        ("TensorFlow", {"main.py"}, True),
        ("TensorFlow", set(), False),
        ("Caffe", {"lenet_solver.prototxt", "lenet_train_test.prototxt"}, True),
        ("Caffe", {"main.py", "lenet_solver.prototxt"}, False),
    ],
)
def test_a_template_folder_holds_what_its_framework_starts_from(framework: str, files: set[str], good: bool) -> None:
    if good:
        check_files(framework, files)
    else:
        with pytest.raises(ServiceError, match="path"):
            check_files(framework, files)


def test_frameworks_are_found_without_importing_them() -> None:
    loaded = "torch" in sys.modules
    names = [framework.name for framework in list_frameworks()]
    assert "PyTorch" in names
    assert ("torch" in sys.modules) == loaded
    assert {"Caffe", "edtPyTorch"} < set(names)
    assert [framework.name for framework in list_frameworks("pytorch")] == ["PyTorch", "edtPyTorch"]
    with pytest.raises(ServiceError, match="Caffe, TensorFlow, PyTorch"):
        list_frameworks("mxnet")


@pytest.mark.parametrize(
    ("part", "filename", "name"),
    [
        ("file", "w.pth", "w.pth"),
        ("file", "C:\\tmp\\w.pth", "w.pth"),
        ("file", "../../w.pth", "w.pth"),
        ("w.pth", None, "w.pth"),
        ("file", None, None),
        ("file", "", None),
    ],
)
def test_weight_file_names(part: str, filename: str | None, name: str | None) -> None:
    assert choose_name(part, filename) == name
