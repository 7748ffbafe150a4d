"""What is particular about tunings of models: which parameters are the program's own, what their resource is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from servicekit.errors import invalid

from tuning_service.domain.fields import Fields
from tuning_service.domain.plan import AlgorithmFacts, algorithm_parameters

RESOURCE = "maxiteration"
# Of a parameter with more values only the ends are looked at before it starts.
MAX_PROBED_VALUES = 200


def user_defined_names(request: Mapping[str, Any]) -> frozenset[str]:
    """Parameters that the model's program reads itself, from its config.json."""
    tree = Fields("", request)
    given = tree.objects("hyperParams")
    for experiment in tree.objects("experiments"):
        given += experiment.objects("fixedHyperParams") or experiment.objects("hyperParams")
    return frozenset(
        parameter.text("name") for parameter in given if str(parameter.get("userDefined")[1]).lower() == "true"
    )


def with_resource(request: Mapping[str, Any], algorithm: AlgorithmFacts) -> dict[str, Any]:
    """The request of a tuning, whose resource is the number of iterations unless it says another: at most
    resDef.maxiteration, at least resDef.miniteration of them."""
    tree = Fields("", request)
    given = {name.lower() for name in algorithm_parameters(tree)}
    if not algorithm.needs_resource or "resourcename" in given:
        return dict(request)
    resources = tree.object("resDef")
    most, least = resources.whole("maxiteration"), resources.whole("miniteration")
    if most is None or most < 1:
        raise invalid(resources.place("maxiteration"), most or "", f"a whole number from 1 for {algorithm.name}")
    settings = dict(tree.object("algoDef"))
    added = {"ResourceName": RESOURCE, "ResourceValue": str(most)}
    if least:
        added["MinResource"] = str(least)
    parameters = [{"name": name, "value": value} for name, value in added.items() if name.lower() not in given]
    return {**request, "algoDef": {**settings, "algoParams": [*(settings.get("algoParams") or []), *parameters]}}
