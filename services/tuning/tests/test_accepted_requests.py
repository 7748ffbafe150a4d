"""No request that is accepted makes an answer or a message to another service fail."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dlmesh.tuning.v1 import tuning_pb2
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.json_format import MessageToJson, ParseDict, ParseError
from hypothesis import given
from hypothesis import strategies as st
from servicekit.errors import ServiceError
from servicekit.times import utc_now
from studies_room import study_of
from tuning_service.algorithms import registry
from tuning_service.api.form import receive_form
from tuning_service.api.mapping import hyper_search_detail
from tuning_service.api.model_tuning_servicer import request_tree
from tuning_service.api.tuning_mapping import tuning_detail
from tuning_service.clients.training_trials import _probes, _spec, _value
from tuning_service.domain.evaluation import Answer, Suggestion
from tuning_service.domain.fields import MAX_DATA_BYTES, Fields, read_tree
from tuning_service.domain.plan import AlgorithmFacts, Plan, algorithm_name, outline, read_plan
from tuning_service.domain.plugin_facts import PluginFacts
from tuning_service.domain.study import Kind, Study, Trial
from tuning_service.domain.tuning import completed, user_defined_names
from tuning_service.storage.algorithms import BuiltIn
from tuning_service.usecases.studies import Budget, StudyView, _with_budget
from tuning_service.usecases.trials import given_trials, made_trials

WHOLE = st.sampled_from([0, 1, 2, 3, 20, 21, 62, 63, 64, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, -1, -(2**63)])
NUMBERS = WHOLE | st.sampled_from([0.5, -4.0, 1e-300, 1e300])
EDGES = NUMBERS | NUMBERS.map(str) | st.sampled_from(["7.0", "1e3"])
TEXTS = st.sampled_from(["sgd", "adam", "1", "\0", "\ud800", "é" * 300])
# Names and words are mostly right, so that numbers come to be looked at.
PARAMETERS = {
    ("Range", "int"): ({"minIntVal": WHOLE, "maxIntVal": WHOLE}, {"power": st.sampled_from([2, "8"]), "step": WHOLE}),
    ("Range", "double"): ({"minDbVal": NUMBERS, "maxDbVal": EDGES}, {"power": EDGES, "step": EDGES}),
    ("Discrete", "int"): ({"discreteIntVal": st.lists(EDGES, min_size=1, max_size=3)}, {}),
    ("Discrete", "double"): ({"discreteDbVal": st.lists(EDGES, min_size=1, max_size=3)}, {}),
    ("Discrete", "str"): ({"discreateStrVal": st.lists(TEXTS, min_size=1, max_size=3)}, {}),
    ("Fix", "int"): ({"fixedVal": EDGES.map(str)}, {}),
    ("Fix", "double"): ({"fixedVal": EDGES.map(str)}, {}),
    ("Fix", "str"): ({"fixedVal": TEXTS}, {}),
}
NAMES = st.sampled_from(["rate", "layers", "batchsize", "epochs", "maxiteration"])


def parameters(*types: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    found = [
        st.fixed_dictionaries(
            {"name": NAMES, "type": st.just(kind), "dataType": st.just(data_type), **needed},
            optional={**optional, "userDefined": st.booleans()},
        )
        for (kind, data_type), (needed, optional) in PARAMETERS.items()
        if kind in types
    ]
    return st.lists(st.one_of(found), min_size=1, max_size=2, unique_by=lambda one: one["name"])


RESOURCE = st.tuples(st.sampled_from(["epochs", "maxiteration"]), WHOLE, WHOLE).map(
    lambda given: [
        {"name": name, "value": str(value)}
        for name, value in zip(("ResourceName", "ResourceValue", "MinResource"), given, strict=True)
    ]
)
LIMITS = {
    "maxJobNum": st.sampled_from([-1, 0, 1, 100_000, 2**31]),
    "maxRunTime": st.sampled_from([-1, 0, 1, 30, 2**31]),
    "maxParalleJobNum": st.sampled_from([1, 1000, 2**31]),
    "goal": NUMBERS,
}


def settings_of(
    names: list[str], algorithm_parameters: st.SearchStrategy[list[Any]]
) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "algorithm": st.sampled_from(names),
            "objectiveMetric": st.just("loss") | TEXTS,
            "objective": st.just("minimize"),
            "algoParams": algorithm_parameters,
        },
        optional=LIMITS,
    )


RESOURCES = st.fixed_dictionaries(
    {},
    optional={
        **{name: WHOLE.map(str) for name in ("maxiteration", "miniteration")},
        **{name: st.sampled_from([0, 1, 2**31 - 1]) for name in ("batchsize", "gpuNum", "workerNum")},
        "framework": TEXTS,
    },
)


def requests(parameters_of_experiments: str) -> st.SearchStrategy[dict[str, Any]]:
    """Searches over parameters, by resources, and lists of experiments."""
    seeds = WHOLE.map(lambda seed: [{"name": "RandomSeed", "value": str(seed)}])
    kinds = [
        (settings_of(["Random", "TPE", "mine"], st.just([]) | seeds), parameters("Range", "Discrete", "Fix")),
        (settings_of(["Hyperband", "ASHA"], RESOURCE), parameters("Range", "Discrete", "Fix")),
        (settings_of(["mine"], RESOURCE), parameters("Range", "Discrete", "Fix")),
    ]
    fixed = parameters("Fix").map(
        lambda several: [{name: one[name] for name in one if name != "type"} for one in several]
    )
    experiment = st.fixed_dictionaries({"id": WHOLE | st.just("7.0"), parameters_of_experiments: fixed})
    listed = {
        "algoDef": settings_of(["ExperimentGridSearch"], st.just([])),
        "experiments": st.lists(experiment, min_size=1, max_size=2),
    }
    return st.one_of(
        *(
            st.fixed_dictionaries({"algoDef": settings, "hyperParams": found}, optional={"resDef": RESOURCES})
            for settings, found in kinds
        ),
        st.fixed_dictionaries(listed, optional={"resDef": RESOURCES}),
    )


def facts_of(tree: dict[str, Any]) -> AlgorithmFacts:
    found = registry.find(algorithm_name(Fields("", tree)))
    return BuiltIn(*found) if found else PluginFacts("mine")


def trials_of(study: Study, plan: Plan) -> list[Trial]:
    """Those that there could be: at both ends of everything, with all of the resource."""
    notes = {"resource": int(plan.settings["ResourceValue"])} if plan.resource_name else {}
    if plan.experiments:
        answers = [Suggestion((), {"experiment": index}) for index in range(len(plan.experiments))]
    else:
        end = tuple(1.0 if one.size is None else one.size - 1 for one in plan.space.dimensions)
        answers = [Suggestion(place, notes) for place in (tuple(0 for _ in end), end)]
    return [*made_trials(study, plan, Answer(answers), lambda: "u"), *given_trials(study, plan, 2, lambda: "v")]


@given(requests("hyperParams"))
def test_searches_are_shown(request: dict[str, Any]) -> None:
    study = None
    with contextlib.suppress(ServiceError):
        tree = read_tree("data", json.dumps(request))
        plan = read_plan(Fields("", tree), facts_of(tree), Kind.HYPER_SEARCH.experiment_parameters)
        study = study_of(request=tree, **outline(Fields("", tree), plan))
    if study is not None:
        trials = trials_of(study, plan)
        MessageToJson(hyper_search_detail(StudyView(study, trials, trials[0]), utc_now()))


@given(requests("fixedHyperParams"), st.none() | st.sampled_from([-1, 0.25, 1, 1.5]))
def test_tunings_are_shown_and_started(request: dict[str, Any], minutes: float | None) -> None:
    study = None
    tree: dict[str, Any] = {}
    # The gateway refuses what is no message.
    with contextlib.suppress(ParseError, UnicodeEncodeError):
        tree = request_tree(ParseDict(request, tuning_pb2.StartModelTuningRequest()))
    with contextlib.suppress(ServiceError):
        tree = completed(tree, facts_of(tree))
        plan = read_plan(Fields("", tree), facts_of(tree), Kind.MODEL_TUNING.experiment_parameters)
        # What cannot be said of resDef is refused while the first trial is checked.
        for name in ("framework", "syncMode"):
            Fields("", tree).object("resDef").text(name, default="")
        study = study_of(request=tree, kind=Kind.MODEL_TUNING, **outline(Fields("", tree), plan))
        study.model_uid, study.model_name = "m", "digits"
    if study is not None:
        own = user_defined_names(study.request)
        first, candidates = _probes(plan)
        _spec(study, first, own)
        for values in candidates.values():
            list(map(_value, values))
        study.request = _with_budget(study, Budget(max_minutes=minutes))
        trials = trials_of(study, plan)
        for trial in trials:
            _spec(study, trial.values, own)
        MessageToJson(tuning_detail(StudyView(study, trials, trials[0]), utc_now()))


@pytest.mark.parametrize("name", ["maxiteration", "miniteration"])
def test_iterations_that_no_training_counts_to(name: str) -> None:
    random = BuiltIn("Random", registry.ALGORITHMS["Random"])
    for text in ("2147483648", "-1", "many", "1e300"):
        with pytest.raises(ServiceError) as caught:
            completed({"resDef": {name: text}}, random)
        assert caught.value.metadata["field"] == f"resDef.{name}"
    with pytest.raises(ServiceError, match="2147483648 is not valid; allowed: 0 to 2147483647"):
        completed({"resDef": {name: "2147483648"}}, random)


def test_trials_run_for_who_started_the_study() -> None:
    """Their rights, quota and share count; what is the program's own goes to it, also when it is always the same."""
    parameters = [
        {"name": "learningrate", "type": "Range", "dataType": "double", "minDbVal": 0.1, "maxDbVal": 0.2},
        {"name": "width", "type": "Fix", "dataType": "int", "fixedVal": "8", "userDefined": True},
        {"name": "depth", "type": "Discrete", "dataType": "int", "discreteIntVal": [2, 3], "userDefined": "True"},
        {"name": "epoch", "type": "Fix", "dataType": "int", "fixedVal": "1", "userDefined": False},
    ]
    request = {"algoDef": {"algorithm": "Random"}, "hyperParams": parameters, "resDef": {}}
    tree = completed(request, facts_of(request))
    plan = read_plan(Fields("", tree), facts_of(tree), Kind.MODEL_TUNING.experiment_parameters)
    study = study_of(request=tree, kind=Kind.MODEL_TUNING, owner="eve", owner_is_administrator=False)
    first, candidates = _probes(plan)
    spec = _spec(study, first, user_defined_names(tree))
    assert (spec.owner, spec.owner_is_administrator) == ("eve", False)
    assert {name: value.whole for name, value in spec.user_defined.items()} == {"width": 8, "depth": 2}
    assert set(spec.hyperparameters) == {"learningrate", "epoch"}
    assert set(candidates) == {"learningrate", "depth"}


async def test_data_is_refused_as_soon_as_it_is_too_long(tmp_path: Path) -> None:
    """Whatever a file may have, and before the end has come."""
    piece, pieces = b" " * (MAX_DATA_BYTES // 4), []

    async def body() -> AsyncIterator[tuning_pb2.StartHyperSearchRequest]:
        head = b'--x\r\nContent-Disposition: form-data; name="data"\r\n\r\n'
        kind = "multipart/form-data; boundary=x"
        yield tuning_pb2.StartHyperSearchRequest(body=HttpBody(content_type=kind, data=head))
        while len(pieces) < 100:
            pieces.append(piece)
            yield tuning_pb2.StartHyperSearchRequest(body=HttpBody(data=piece))

    with pytest.raises(ServiceError, match=f"data: more than the allowed {MAX_DATA_BYTES} bytes") as caught:
        await receive_form(body(), tmp_path, 2**30)
    assert caught.value.metadata["field"] == "data"
    assert len(pieces) == 5
