"""What hyperparameters and words may hold."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from models_service.domain.hyperparameters import FIELDS, POLICIES, SOLVERS, check_complete, check_duration, settle
from models_service.domain.prototxt import solver_fields
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
        settle({}, {name: value}, "PyTorch")
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
    assert settle({}, {"solvertype": given}, framework) == {"solvertype": kept}


@pytest.mark.parametrize(
    ("framework", "given", "message"),
    [
        ("PyTorch", {"lrpolicy": "step"}, "hyperparameter.stepsize.*lrpolicy step needs it"),
        ("PyTorch", {"lrpolicy": "multistep"}, "hyperparameter.stepvalues"),
        ("PyTorch", {"nesterov": True}, "hyperparameter.momentum.*nesterov needs it"),
        ("PyTorch", {"nesterov": True, "momentum": 0.5, "dampening": 0.1}, "hyperparameter.dampening: 0.1"),
        ("TensorFlow", {"lrpolicy": "exponential", "decaysteps": 5}, "hyperparameter.decayrate"),
        ("TensorFlow", {"lrpolicy": "inversetime", "decayrate": 5}, "hyperparameter.decaysteps"),
        ("TensorFlow", {"lrpolicy": "naturalexp"}, "hyperparameter.decaysteps"),
        ("TensorFlow", {"lrpolicy": "polynomial"}, "hyperparameter.decaysteps"),
        ("TensorFlow", {"lrpolicy": "piecewise", "decayrate": 0.1}, "hyperparameter.stepvalues"),
        (
            "Caffe",
            {"lrpolicy": "step", "gamma": 0.1},
            "stepsize: '' .* given, here or in solver.prototxt, lrpolicy step",
        ),
        ("Caffe", {"lrpolicy": "multistep", "gamma": 0.1}, "hyperparameter.stepvalues"),
        ("Caffe", {"lrpolicy": "exp"}, "hyperparameter.gamma"),
        ("Caffe", {"lrpolicy": "inv", "gamma": 0.1}, "hyperparameter.power"),
        ("Caffe", {"lrpolicy": "poly"}, "hyperparameter.power"),
        ("Caffe", {"lrpolicy": "sigmoid", "gamma": -0.3}, "hyperparameter.stepsize.*lrpolicy sigmoid needs it"),
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
        ("Caffe", {"lrpolicy": "step", "stepsize": 3, "gamma": 0.1}),
        ("Caffe", {"lrpolicy": "poly", "power": 0.0}),
        ("TensorFlow", {"lrpolicy": "piecewise", "decayrate": 0.1, "stepvalues": "5"}),
    ],
)
def test_what_is_complete_is_taken(framework: str, given: dict[str, Any]) -> None:
    check_complete(given, framework)


SOLVER = """
# lr_policy: "inv"
lr_policy: 'multistep' stepvalue: 5, stepvalue: 9
gamma: 0.1  # power: 3
train_state { stage: "power: 1" }
net_param { layer { param { max_iter: 3 } } }
"""


def test_fields_of_a_solver_are_its_own() -> None:
    assert solver_fields(SOLVER) == {"lr_policy": "multistep", "stepvalue": "9", "gamma": "0.1"}
    assert solver_fields("stepvalue: [ 5, 9 ] } power:") == {"stepvalue": "5"}


@pytest.mark.parametrize(
    "text", ['gamma: 1 type: "Ada\nGrad"', "type: 'SGD", "type: '", 'type: "SGD\\"', 'type: "a\\\nb"']
)
def test_a_text_in_quotes_ends_on_its_line(text: str) -> None:
    with pytest.raises(
        ServiceError, match=r"^solverContent: .* is not valid; allowed: texts in quotes that end on the"
    ):
        solver_fields(text)
    assert solver_fields(f"# {text.splitlines()[0]}") == {}


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_text_in_quotes_is_read_in_linear_time(quote: str) -> None:
    text = quote + f"\\{quote}" * 500_000
    with within(seconds=10):
        with pytest.raises(ServiceError, match=r"^solverContent: "):
            solver_fields(text)
        assert solver_fields(f"type: {text}{quote} gamma: 1")["gamma"] == "1"


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """TimeoutError when it takes longer; regular expressions look at signals, too."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_what_a_caffe_policy_needs_may_stand_in_solver_prototxt() -> None:
    said = solver_fields(SOLVER)
    check_complete({}, "Caffe", solver_file=said)
    check_complete({"lrpolicy": "step", "stepsize": 2}, "Caffe", solver_file=said)
    for given, missing in (({"lrpolicy": "step"}, "stepsize"), ({"lrpolicy": "inv"}, "power")):
        with pytest.raises(ServiceError, match=f"^hyperparameter.{missing}: "):
            check_complete(given, "Caffe", solver_file=said)
    with pytest.raises(ServiceError, match=r"^hyperparameter.gamma: .*lrpolicy multistep needs it"):
        check_complete({}, "Caffe", solver_file={"lr_policy": "multistep", "stepvalue": "5"})


@pytest.mark.parametrize(
    "said", ["", "max_iter: 0", "max_iter: -5", "max_iter: 9 max_iter: 0x0", "net_param { max_iter: 5 }"]
)
def test_the_length_of_a_caffe_training_is_asked_for(said: str) -> None:
    wanted = r"^hyperparameter.maxiteration: .* allowed: a whole number of at least 1, here or as max_iter in solver.pr"
    with pytest.raises(ServiceError, match=wanted):
        check_duration({}, "Caffe", solver_fields(said))
    check_duration({"maxiteration": 1}, "Caffe", solver_fields(said))
    check_duration({}, "PyTorch", {})


# Octal numbers, and what is none, are the training's to understand.
@pytest.mark.parametrize("said", ["max_iter: 1", "max_iter: 0x10", "max_iter: 017", "max_iter: many"])
def test_the_length_of_a_caffe_training_may_stand_in_solver_prototxt(said: str) -> None:
    check_duration({}, "Caffe", solver_fields(said))


def test_stepvalues_are_a_text_of_bounded_length() -> None:
    steps = ",".join(map(str, range(1000, 3000)))
    assert settle({}, {"lrpolicy": "multistep", "stepvalues": steps[:9999]}, "PyTorch")["stepvalues"] == steps[:9999]
    with pytest.raises(ServiceError, match=r"^hyperparameter.stepvalues: .* a text of at most 10000 characters$"):
        settle({}, {"lrpolicy": "multistep", "stepvalues": steps + ",3000" * 500_000}, "PyTorch")
    with pytest.raises(ServiceError, match=r"^hyperparameter.stepvalues: .* a text of at most 10000 characters$"):
        settle({}, {"stepvalues": f"{steps},3000,3001"}, "PyTorch")


def test_a_plateau_is_not_for_elastic_models() -> None:
    given: dict[str, Any] = {"lrpolicy": "reducelronplateau"}
    check_complete(given, "PyTorch", "Native")
    wanted = r"lrpolicy: 'reducelronplateau' .* Elastic one of fixed, step, multistep, exponential, cosineannealing$"
    with pytest.raises(ServiceError, match=wanted):
        check_complete(given, "PyTorch", "Elastic")


RANGES: list[tuple[str, dict[str, Any], str, list[Any], list[Any]]] = [
    # framework, solver or policy, field, out of range, at the edge of it
    ("PyTorch", {}, "learningrate", [0, -0.1, math.inf], [1e-12]),
    ("PyTorch", {}, "momentum", [-0.1], [0, 1.5]),
    ("TensorFlow", {"solvertype": "Momentum"}, "momentum", [-0.1, 1.1], [0, 1]),
    ("Caffe", {"solvertype": "SGD"}, "momentum", [-0.1, 1], [0, 0.99]),
    ("PyTorch", {}, "weightdecay", [-1], [0]),
    ("TensorFlow", {"lrpolicy": "exponential"}, "decayrate", [0, -0.5], [2]),
    ("TensorFlow", {"lrpolicy": "exponential"}, "decaysteps", [0, -1], [0.5]),
    ("TensorFlow", {"lrpolicy": "exponential"}, "staircase", ["maybe", 1], ["TRUE", "False"]),
    ("Caffe", {}, "maxiteration", [0, -1, 1.5], [1]),
    ("PyTorch", {}, "epoch", [0, -1, 2.5, True], [1]),
    ("PyTorch", {"lrpolicy": "step"}, "stepsize", [0, -1], [1]),
    ("PyTorch", {"lrpolicy": "multistep"}, "stepvalues", ["0,5", "5,5", "9,5", "a", "5,", "1.5", "-1"], ["1", "5, 9"]),
    ("PyTorch", {"lrpolicy": "step"}, "gamma", [0, -0.5], [1.5]),
    ("Caffe", {"lrpolicy": "sigmoid"}, "gamma", [0], [-0.5, 0.5]),
    ("Caffe", {"lrpolicy": "inv"}, "power", [-1], [0]),
    ("TensorFlow", {"lrpolicy": "polynomial"}, "cycle", ["yes", 1], [True, False]),
    ("TensorFlow", {}, "hiddenstatesize", [0, -1], [1]),
    ("TensorFlow", {"solvertype": "RMSProp"}, "optdecay", [-0.1, 1.1], [0, 1]),
    ("PyTorch", {"solvertype": "Adam"}, "epsilon", [-1e-9], [0]),
    ("PyTorch", {"solvertype": "SparseAdam"}, "epsilon", [0], [1e-8]),
    ("PyTorch", {"solvertype": "Adagrad"}, "accumulator", [-1], [0]),
    ("TensorFlow", {"solvertype": "Adagrad"}, "accumulator", [0, -1], [0.1]),
    ("TensorFlow", {"solvertype": "Ftrl"}, "l1_regularization", [-1], [0]),
    ("TensorFlow", {"solvertype": "Ftrl"}, "l2_regularization", [-1], [0]),
    ("PyTorch", {"solvertype": "Adam"}, "beta1", [-0.1, 1], [0, 0.999]),
    ("PyTorch", {"solvertype": "Adam"}, "beta2", [-0.1, 1], [0, 0.999]),
    ("TensorFlow", {"solvertype": "Ftrl"}, "lr_power", [0.1], [0, -2]),
    ("TensorFlow", {"lrpolicy": "polynomial"}, "end_learning_rate", [-1], [0]),
    ("PyTorch", {"solvertype": "Adadelta"}, "rho", [-0.1, 1.1], [0, 1]),
    ("PyTorch", {"solvertype": "Adagrad"}, "lr_decay", [-1], [0]),
    ("PyTorch", {"solvertype": "Adam"}, "amsgrad", ["true", 1], [True, False]),
    ("PyTorch", {"solvertype": "ASGD"}, "lambd", [-1], [0]),
    ("PyTorch", {"solvertype": "ASGD"}, "alpha", [-1], [0, 2]),
    ("PyTorch", {"solvertype": "RMSProp"}, "alpha", [-1, 2], [0, 1]),
    ("PyTorch", {"solvertype": "ASGD"}, "t0", [-1], [0]),
    ("PyTorch", {"solvertype": "RMSProp"}, "centered", ["no"], [True]),
    ("PyTorch", {}, "dampening", [math.nan, "much"], [-1, 0, 1]),
    ("PyTorch", {}, "nesterov", ["yes"], [True]),
    ("PyTorch", {"lrpolicy": "cosineannealing"}, "t_max", [0, -1], [1]),
    ("PyTorch", {"lrpolicy": "cosineannealing"}, "eta_min", [-1], [0]),
    ("PyTorch", {"lrpolicy": "reducelronplateau"}, "mode", ["median"], ["MAX", "min"]),
    ("PyTorch", {"lrpolicy": "reducelronplateau"}, "factor", [-0.1, 1], [0, 0.9]),
    ("PyTorch", {"lrpolicy": "reducelronplateau"}, "patience", [-1, 0.5], [0]),
    ("PyTorch", {"lrpolicy": "reducelronplateau"}, "threshold", [-1], [0]),
    ("PyTorch", {"lrpolicy": "reducelronplateau"}, "threshold_mode", ["relative"], ["Rel", "abs"]),
    ("PyTorch", {"lrpolicy": "reducelronplateau"}, "cooldown", [-1], [0]),
    ("PyTorch", {"lrpolicy": "reducelronplateau"}, "eps", [-1], [0]),
]


@pytest.mark.parametrize(
    ("framework", "words", "name", "outside", "inside"), RANGES, ids=[f"{each[0]}-{each[2]}" for each in RANGES]
)
def test_ranges(framework: str, words: dict[str, Any], name: str, outside: list[Any], inside: list[Any]) -> None:
    for value in inside:
        assert name in settle(words, {name: value}, framework)
    for value in outside:
        with pytest.raises(ServiceError, match=rf"^hyperparameter.{name}: .* is not valid; allowed: ") as refused:
            settle(words, {name: value}, framework)
        assert refused.value.reason == "INVALID_FIELD"


def test_every_field_has_a_range() -> None:
    assert {name for _, _, name, _, _ in RANGES} == FIELDS.keys() - {"solvertype", "lrpolicy"}


def test_what_has_no_effect_is_kept_within_its_range() -> None:
    current = settle({}, {"solvertype": "SGD", "momentum": 0.9, "weightdecay": 0.1, "learningrate": 0.1}, "PyTorch")
    changed = settle(current, {"solvertype": "Adam", "hiddenstatesize": 8}, "PyTorch")
    assert changed == current | {"solvertype": "Adam", "hiddenstatesize": 8}
    # Clients that send all fields send 0 and false for what they do not mean.
    assert settle(changed, {"decaysteps": 0, "centered": False, "staircase": "false"}, "PyTorch") == changed
    with pytest.raises(ServiceError, match=r"^hyperparameter\.decaysteps: -1"):
        settle(changed, {"decaysteps": -1}, "PyTorch")
    # It counts again, in narrower bounds perhaps, with a solver that has it.
    with pytest.raises(ServiceError, match=r"^hyperparameter\.alpha: 2\.0 .* at most 1"):
        settle(settle({}, {"solvertype": "ASGD", "alpha": 2}, "PyTorch"), {"solvertype": "RMSProp"}, "PyTorch")
    check_complete({"solvertype": "Adam", "nesterov": True, "dampening": 0.5}, "PyTorch")


def test_a_caffe_model_may_leave_its_solver_to_the_prototxt() -> None:
    given = {"momentum": 0.5, "gamma": 0.1, "beta2": 0.9}
    assert settle({}, given, "Caffe") == given


def test_a_template_that_changes_its_framework_keeps_all_but_words_that_it_lacks() -> None:
    current = {"solvertype": "ASGD", "lrpolicy": "step", "stepsize": 3, "learningrate": 0.1, "t0": 1.0, "epoch": 3}
    kept = {"lrpolicy": "step", "stepsize": 3, "learningrate": 0.1, "t0": 1.0, "epoch": 3}
    assert settle(current, {}, "Caffe") == kept


def test_values_are_kept_as_given() -> None:
    given = {
        "learningrate": 0.01, "epoch": 3, "nesterov": True, "lrpolicy": "Multistep", "mode": "", "stepvalues": "5, 10"
    }  # fmt: skip
    assert settle({}, given, "PyTorch") == {
        "learningrate": 0.01,
        "epoch": 3,
        "nesterov": True,
        "lrpolicy": "multistep",
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
        check_files(framework, files, "path", "net")
    else:
        wanted = rf"^path: 'net' .* a template folder for {framework} holds a .*; this one holds (\w|no files)"
        with pytest.raises(ServiceError, match=wanted):
            check_files(framework, files, "path", "net")


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
