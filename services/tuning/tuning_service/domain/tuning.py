"""What is particular about tunings of models: which parameters are the program's own, what their resource is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from servicekit.errors import invalid

from tuning_service.domain.fields import Fields
from tuning_service.domain.parameters import user_defined
from tuning_service.domain.plan import AlgorithmFacts, algorithm_parameters

RESOURCE = "maxiteration"
# What the published client cannot say.
DEFAULT_METRICS = {"maximize": "test_accuracy", "maximise": "test_accuracy", "minimize": "test_loss"}
MAX_ITERATIONS = 2**31 - 1
# Of a parameter with more values only the ends are looked at before it starts.
MAX_PROBED_VALUES = 200


def user_defined_names(request: Mapping[str, Any]) -> frozenset[str]:
    """Parameters that the model's program reads itself, from its config.json."""
    tree = Fields("", request)
    given = tree.objects("hyperParams")
    for experiment in tree.objects("experiments"):
        given += experiment.objects("fixedHyperParams") or experiment.objects("hyperParams")
    return user_defined(given)


def completed(request: Mapping[str, Any], algorithm: AlgorithmFacts) -> dict[str, Any]:
    """The request of a tuning with what it may leave out.

    The objective is then the loss on the test data, to be minimized, or the accuracy on them when something is to be
    maximized; the resource is the number of iterations, at most resDef.maxiteration, at least resDef.miniteration. 400
    when these are no numbers that can be.
    """
    tree = Fields("", request)
    for name in ("maxiteration", "miniteration"):
        tree.object("resDef").within(0, MAX_ITERATIONS, 0, name)
    settings = dict(tree.object("algoDef"))
    if not settings.get("objective"):
        settings["objective"] = "Minimize"
    if not settings.get("objectiveMetric"):
        settings["objectiveMetric"] = DEFAULT_METRICS.get(str(settings["objective"]).lower(), "test_loss")
    if algorithm.needs_resource:
        settings["algoParams"] = [*(settings.get("algoParams") or []), *_resource(tree, algorithm)]
    return {**request, "algoDef": settings}


def _resource(tree: Fields, algorithm: AlgorithmFacts) -> list[dict[str, str]]:
    given = {name.lower() for name in algorithm_parameters(tree)}
    if "resourcename" in given:
        return []
    resources = tree.object("resDef")
    most, least = resources.whole("maxiteration"), resources.whole("miniteration")
    if most is None or most < 1:
        raise invalid(resources.place("maxiteration"), most or "", f"a whole number from 1 for {algorithm.name}")
    added = {"ResourceName": RESOURCE, "ResourceValue": str(most)}
    if least:
        added["MinResource"] = str(least)
    return [{"name": name, "value": value} for name, value in added.items() if name.lower() not in given]
