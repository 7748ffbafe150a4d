"""What clients ask for, in all the ways they write it, and what is said of what will not do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servicekit.errors import ServiceError
from tuning_service.algorithms import registry
from tuning_service.domain.fields import MAX_LITERAL_CHARACTERS, Fields, read_tree
from tuning_service.domain.plan import MedianRule, Objective, Plan, read_plan
from tuning_service.domain.plugin_facts import PluginFacts
from tuning_service.domain.space import Continuous, DataType, Fixed, Levels, Space
from tuning_service.storage.algorithms import BuiltIn

RATE = {"name": "rate", "type": "Range", "dataType": "double", "minDbVal": 0.001, "maxDbVal": 0.1}
ALGORITHM = {"algorithm": "Random", "objectiveMetric": "loss", "objective": "minimize"}


def plan_of(*parameters: Mapping[str, Any], more: Mapping[str, Any] | None = None, **algorithm: Any) -> Plan:
    tree = {"algoDef": ALGORITHM | algorithm, "hyperParams": list(parameters or [RATE]), **(more or {})}
    tree = {name: value for name, value in tree.items() if value is not None}
    found = registry.find(tree["algoDef"]["algorithm"])
    assert found is not None
    return read_plan(Fields("", tree), BuiltIn(*found), "hyperParams")


def refusal(*parameters: Mapping[str, Any], more: Mapping[str, Any] | None = None, **algorithm: Any) -> tuple[str, str]:
    with pytest.raises(ServiceError) as caught:
        plan_of(*parameters, more=more, **algorithm)
    assert caught.value.code == 3
    return caught.value.metadata["field"], caught.value.message


def dimension(**fields: Any) -> Any:
    space = plan_of({"name": "x", **fields}).space
    return (*space.dimensions, *space.fixed)[0]


def values(**fields: Any) -> list[Any]:
    found = dimension(**fields)
    return [found.value(index) for index in range(found.size)]


def test_ranges_are_read_as_they_are_meant() -> None:
    assert dimension(type="range", dataType="DOUBLE", minDbVal="1e-3", maxDbVal=1) == Continuous("x", 0.001, 1.0)
    assert dimension(type="Range", dataType="float", minDbVal=-4, maxDbVal=0, power="10") == Continuous("x", -4, 0, 10)
    assert values(type="Range", dataType="int", minIntVal=1, maxIntVal="4") == [1, 2, 3, 4]
    assert values(type="Range", dataType="INT", minIntVal=1, maxIntVal=10, step="4") == [1, 5, 9]
    assert values(type="Range", dataType="int", minIntVal=4, maxIntVal=7, power=2) == [16, 32, 64, 128]
    # As they are written, without the noise of binary fractions.
    steps = values(type="Range", dataType="double", minDbVal=0.001, maxDbVal=0.01, step="0.002")
    assert steps == [0.001, 0.003, 0.005, 0.007, 0.009]
    assert values(type="Range", dataType="double", minDbVal=-3, maxDbVal=-1, step=1, power="10") == [0.001, 0.01, 0.1]
    assert values(type="Range", dataType="double", minDbVal=0, maxDbVal=0.3, step=0.1) == [0.0, 0.1, 0.2, 0.3]


def test_one_value_is_no_dimension() -> None:
    for fields in (
        {"type": "Range", "dataType": "int", "minIntVal": 5, "maxIntVal": 5, "step": 3},
        {"type": "Discrete", "dataType": "int", "discreteIntVal": [5, "5", 5.0]},
        {"type": "Fix", "dataType": "int", "fixedVal": "5"},
    ):
        assert dimension(**fields) == Fixed("x", DataType.INT, 5)
    user = dimension(type="Fix", dataType="STRING", fixedVal="sgd", userDefined=True)
    assert user == Fixed("x", DataType.STR, "sgd", user_defined=True)


def test_numbers_are_in_order_and_words_are_not() -> None:
    numbers = dimension(type="Discrete", dataType="int", discreteIntVal=[64, 16, "32"])
    assert isinstance(numbers, Levels)
    assert (list(numbers.values), numbers.is_ordered) == ([16, 32, 64], True)
    words = dimension(type="discrete", dataType="str", discreateStrVal=["b", "a", 3, "b"])
    assert (list(words.values), words.is_ordered) == (["b", "a", "3"], False)


RANGE = {"name": "x", "type": "Range", "dataType": "int", "minIntVal": 1, "maxIntVal": 9}
DOUBLE = {"name": "x", "type": "Range", "dataType": "double", "minDbVal": 1, "maxDbVal": 9}


@pytest.mark.parametrize(
    ("parameter", "field", "says"),
    [
        (RANGE | {"maxIntVal": 0}, "hyperParams[0].maxIntVal", "at least 1"),
        (RANGE | {"minIntVal": None}, "hyperParams[0].minIntVal", "it has to be given"),
        (RANGE | {"minIntVal": 1.5}, "hyperParams[0].minIntVal", "a whole number"),
        (RANGE | {"minIntVal": True}, "hyperParams[0].minIntVal", "a number"),
        (RANGE | {"step": 9}, "hyperParams[0].step", "at most 8"),
        (RANGE | {"step": "0.5"}, "hyperParams[0].step", "a whole number"),
        (RANGE | {"step": 0}, "hyperParams[0].step", "above 0"),
        (RANGE | {"step": "a"}, "hyperParams[0].step", "a number"),
        (RANGE | {"power": 1}, "hyperParams[0].power", "other than 1"),
        (RANGE | {"power": "2.5"}, "hyperParams[0].power", "whole number"),
        (RANGE | {"power": 1000}, "hyperParams[0].power", "type int can hold"),
        (DOUBLE | {"maxDbVal": "nan"}, "hyperParams[0].maxDbVal", "finite"),
        (DOUBLE | {"maxDbVal": 1e400}, "hyperParams[0].maxDbVal", "finite"),
        (DOUBLE | {"maxDbVal": 400, "power": 10}, "hyperParams[0].power", "can hold"),
        (DOUBLE | {"step": 8.5}, "hyperParams[0].step", "at most 8"),
        (RANGE | {"dataType": "str"}, "hyperParams[0].type", "Discrete or Fix"),
        (RANGE | {"dataType": "bool"}, "hyperParams[0].dataType", "double, int, str"),
        (RANGE | {"dataType": None}, "hyperParams[0].dataType", "it has to be given"),
        (RANGE | {"type": "Set"}, "hyperParams[0].type", "Discrete, Fix, Range"),
        (RANGE | {"name": ""}, "hyperParams[0].name", "it has to be given"),
        (RANGE | {"name": "a\nb"}, "hyperParams[0].name", "printable"),
        ({"name": "x", "type": "Discrete", "dataType": "int"}, "hyperParams[0].discreteIntVal", "1 to"),
        (
            {"name": "x", "type": "Discrete", "dataType": "int", "discreteIntVal": [1, "two"]},
            "hyperParams[0].discreteIntVal[1]",
            "a number",
        ),
        (
            {"name": "x", "type": "Discrete", "dataType": "str", "discreateStrVal": ["a"], "step": 1},
            "hyperParams[0].step",
            "Range only",
        ),
        ({"name": "x", "type": "Fix", "dataType": "int"}, "hyperParams[0].fixedVal", "it has to be given"),
        ({"name": "x", "type": "Fix", "dataType": "int", "fixedVal": "a"}, "hyperParams[0].fixedVal", "a number"),
    ],
)
def test_a_parameter_that_will_not_do_is_named(parameter: dict[str, Any], field: str, says: str) -> None:
    named, message = refusal(parameter)
    assert named == field
    assert says in message


def test_a_search_needs_parameters_or_experiments_and_not_both() -> None:
    experiments = [{"id": 1, "hyperParams": [{"name": "x", "dataType": "int", "fixedVal": 1}]}]
    assert refusal(more={"experiments": experiments})[0] == "experiments"
    assert refusal(more={"hyperParams": None})[0] == "hyperParams"
    only = {"hyperParams": None, "experiments": experiments}
    assert "experiments are for ExperimentGridSearch" in refusal(more=only)[1]
    assert refusal(algorithm="ExperimentGridSearch")[0] == "experiments"
    plan = plan_of(more=only, algorithm="experimentgridsearch")
    assert plan.algorithm == "ExperimentGridSearch"
    assert plan.experiments == [(1, (Fixed("x", DataType.INT, 1),))]
    twice = {"hyperParams": None, "experiments": experiments * 2}
    assert refusal(more=twice, algorithm="ExperimentGridSearch")[0] == "experiments[1].id"


def test_names_are_given_once() -> None:
    assert refusal(RATE, RATE)[0] == "hyperParams[1].name"


def test_objectives() -> None:
    assert plan_of().objectives == (Objective("loss", maximize=False),)
    assert plan_of(objective="Maximize").objectives[0].maximize
    assert refusal(objectiveMetric=None)[0] == "algoDef.objectiveMetric"
    assert refusal(objective=None)[0] == "algoDef.objective"
    assert "maximize, minimize" in refusal(objective="best")[1]
    two = [{"metric": "seconds", "objective": "minimize"}]
    assert plan_of(objectives=two).objectives[1] == Objective("seconds", maximize=False)
    assert refusal(objectives=[{"metric": "loss", "objective": "minimize"}])[0] == "algoDef.objectives[0].metric"
    hyperband = {"algorithm": "Hyperband", "algoParams": RESOURCE}
    assert "at most 1 objectives" in refusal(objectives=two, **hyperband)[1]


RESOURCE = [{"name": "ResourceName", "value": "epochs"}, {"name": "ResourceValue", "value": "27"}]


def test_hyperband_needs_its_resource() -> None:
    assert refusal(algorithm="Hyperband")[0] == "algoParams.ResourceName"
    assert refusal(algorithm="Hyperband", algoParams=RESOURCE[:1])[0] == "algoParams.ResourceValue"
    wrong = [RESOURCE[0], {"name": "ResourceValue", "value": "many"}]
    assert "a whole number from 1" in refusal(algorithm="Hyperband", algoParams=wrong)[1]
    plan = plan_of(algorithm="Hyperband", algoParams=RESOURCE, hyperbandEta=4.0)
    assert (plan.resource_name, plan.settings["ResourceValue"], plan.settings["eta"]) == ("epochs", 27, 4.0)
    # Notebooks send it with other algorithms, too.
    assert "eta" not in plan_of(hyperbandEta=3.0).settings
    epochs = {"name": "epochs", "type": "Range", "dataType": "int", "minIntVal": 1, "maxIntVal": 50}
    searched = plan_of(RATE, epochs, algorithm="Hyperband", algoParams=RESOURCE).space
    assert [one.name for one in searched.dimensions] == ["rate"]


def test_settings_of_algorithms_are_checked() -> None:
    assert plan_of(algorithm="Tpe").algorithm == "TPE"
    assert plan_of(algorithm="tpe", algoParams=[{"name": "warmup", "value": "5"}]).settings["WarmUp"] == 5
    assert "RandomSeed, WarmUp" in refusal(algorithm="Tpe", algoParams=[{"name": "Warm", "value": "5"}])[1]
    for value in ("0", "x", "", "1.5"):
        assert refusal(algorithm="Tpe", algoParams=[{"name": "WarmUp", "value": value}])[0] == "algoParams.WarmUp"
    assert (
        plan_of(algorithm="Bayesian", algoParams=[{"name": "Noiseless", "value": "False"}]).settings["Noiseless"]
        is False
    )
    twice = [{"name": "RandomSeed", "value": "5"}] * 2
    assert refusal(algoParams=twice)[0] == "algoDef.algoParams[1].name"


def test_limits() -> None:
    plan = plan_of(maxRunTime="1.5", maxJobNum="7", maxParalleJob=3, goal="0.1", patience=5, maxTrialMinutes=2)
    assert (plan.max_seconds, plan.max_trials, plan.parallel, plan.goal, plan.patience) == (90.0, 7, 3, 0.1, 5)
    assert plan.max_trial_seconds == 120.0
    # Notebooks and the reference spell it in two ways; clients send the first.
    assert plan_of(maxParalleJobNum=4, maxParalleJob=None).parallel == 4
    free = plan_of(maxRunTime=-1, maxJobNum=-1, maxParalleJob=None)
    assert (free.max_seconds, free.max_trials, free.parallel) == (None, None, 1)
    for field in ("maxJobNum", "maxRunTime", "maxTrialMinutes"):
        assert refusal(**{field: -2})[0] == f"algoDef.{field}"
        assert refusal(**{field: "soon"})[0] == f"algoDef.{field}"
    assert refusal(maxParalleJob=0)[0] == "algoDef.maxParalleJob"
    assert plan_of(earlyStopping={"minTrials": 3}).median_rule == MedianRule(1, 3)
    assert refusal(earlyStopping={"rule": "luck"})[0] == "algoDef.earlyStopping.rule"


def test_points_to_begin_with_are_in_the_space() -> None:
    assert plan_of(startPoints=[{"rate": "0.01"}]).start_points == [{"rate": 0.01}]
    assert refusal(startPoints=[{"rate": 5}])[0] == "algoDef.startPoints[0].rate"
    assert refusal(startPoints=[{"speed": 5}])[0] == "algoDef.startPoints[0].speed"
    hyperband = {"algorithm": "Hyperband", "algoParams": RESOURCE}
    assert refusal(startPoints=[{"rate": 0.01}], **hyperband)[0] == "algoDef.startPoints"
    assert refusal(startPoints=[{}])[0] == "algoDef.startPoints[0].rate"


def test_data_may_be_json_or_a_literal() -> None:
    assert read_tree("data", '{"a": [1, null, true]}') == {"a": [1, None, True]}
    assert read_tree("data", " {'a': (1, None, True)}") == {"a": [1, None, True]}
    for text in ("", "5", "[1]", "{'a': open('/etc/passwd')}", "{" * 10_000, "[" * 100_000, "{'a': 1", "\0"):
        with pytest.raises(ServiceError) as caught:
            read_tree("data", text)
        assert caught.value.metadata["field"] == "data"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": NaN}', "finite numbers"),
        ('{"a": 1e999}', "finite numbers"),
        ("{'a': 1e999}", "finite numbers"),
        ("{'a': b'x'}", "as JSON has them"),
        ("{'a': {1, 2}}", "as JSON has them"),
        ("{(1, 2): 3}", "as JSON has them"),
        ('{"a": "\\ud800"}', "whole characters"),
        ('{"a": ["\\u0000"]}', "the character 0"),
        ("{'a\\x00': 1}", "the character 0"),
    ],
)
def test_data_that_no_table_can_hold_is_refused(text: str, says: str) -> None:
    with pytest.raises(ServiceError, match=says) as caught:
        read_tree("data", text)
    assert caught.value.metadata["field"] == "data"


def test_a_backslash_before_a_word_is_no_character() -> None:
    assert read_tree("data", r'{"a": "\\\\u0000"}') == {"a": r"\\u0000"}


def test_only_short_literals_are_read() -> None:
    numbers = ", ".join("1" * 1000)
    for count, says in ((MAX_LITERAL_CHARACTERS // len(numbers), ""), (MAX_LITERAL_CHARACTERS // 1000, "262144")):
        text = "{'a': [" + ", ".join([numbers] * count) + "]}"
        if not says:
            assert len(read_tree("data", text)["a"]) == 1000 * count
            continue
        with pytest.raises(ServiceError, match=says) as caught:
            read_tree("data", text)
        # The same in JSON is not too long.
        assert "an object in JSON" in caught.value.message
        assert len(read_tree("data", text.replace("'", '"'))["a"]) == 1000 * count


def test_texts_are_what_messages_can_hold() -> None:
    for text in ("\ud800", "a\0"):
        assert refusal(objectiveMetric=text)[0] == "algoDef.objectiveMetric"
        assert (
            refusal({"name": "x", "type": "Fix", "dataType": "str", "fixedVal": text})[0] == "hyperParams[0].fixedVal"
        )
    assert refusal(objectiveMetric="a" * 257)[0] == "algoDef.objectiveMetric"


def test_powers_end_where_whole_numbers_do() -> None:
    power = {"name": "x", "type": "Range", "dataType": "int", "minIntVal": 1, "power": 8}
    assert refusal(power | {"maxIntVal": 21})[0] == "hyperParams[0].power"
    assert dimension(**{**power, "maxIntVal": 20}).value(19) == 8**20
    assert refusal(power | {"maxIntVal": 2**62, "power": 2})[0] == "hyperParams[0].power"


def test_what_a_plugin_calls_a_resource_is_its_own() -> None:
    tree = {"algoDef": ALGORITHM | {"algoParams": RESOURCE[:1]}, "hyperParams": [RATE]}
    assert read_plan(Fields("", tree), PluginFacts("mine"), "hyperParams").resource_name == ""


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "name",
    "type",
    "dataType",
    "minIntVal",
    "maxIntVal",
    "minDbVal",
    "step",
    "power",
    "discreteIntVal",
    "fixedVal",
)


@given(
    st.dictionaries(st.sampled_from(NAMES), JUNK | st.sampled_from(["Range", "Discrete", "int", "double"])),
    st.dictionaries(
        st.sampled_from(["maxJobNum", "goal", "algoParams", "objectives", "startPoints", "earlyStopping"]), JUNK
    ),
)
def test_junk_is_refused_or_read(parameter: dict[str, Any], algorithm: dict[str, Any]) -> None:
    tree = {"algoDef": ALGORITHM | algorithm, "hyperParams": [RATE, parameter]}
    found = registry.find("Random")
    assert found is not None
    try:
        plan = read_plan(Fields("", json.loads(json.dumps(tree))), BuiltIn(*found), "hyperParams")
    except ServiceError as error:
        field = error.metadata["field"]
    else:
        field = "" if not isinstance(plan.space, Space) else "none"
    assert field
