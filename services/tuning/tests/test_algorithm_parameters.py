"""The parameters of algorithms in all the ways that clients write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from servicekit.errors import ServiceError
from tuning_service.algorithms import registry
from tuning_service.domain.fields import Fields
from tuning_service.domain.plan import AlgorithmFacts, read_plan
from tuning_service.storage.algorithms import BuiltIn

RATE = {"name": "rate", "type": "Range", "dataType": "double", "minDbVal": 0.001, "maxDbVal": 0.1}
SETTINGS = {"objectiveMetric": "loss", "objective": "minimize"}
RESOURCE = {"ResourceName": "epochs", "ResourceValue": "27"}


class Installed:
    """One of a user's, which is given whatever is said to it."""

    name = "mine"
    takes_experiments = needs_resource = takes_start_points = takes_warm_start = False
    max_objectives = 1

    def read_settings(self, given: Mapping[str, str]) -> Mapping[str, Any]:
        return dict(given)


def settings_of(algorithm: AlgorithmFacts, given: Mapping[str, str], **more: Any) -> Mapping[str, Any]:
    parameters = [{"name": name, "value": value} for name, value in given.items()]
    tree = {"algoDef": {"algorithm": algorithm.name, "algoParams": parameters, **SETTINGS, **more}}
    return read_plan(Fields("", {**tree, "hyperParams": [RATE]}), algorithm, "hyperParams").settings


def built_in(name: str) -> BuiltIn:
    found = registry.find(name)
    assert found is not None
    return BuiltIn(*found)


def test_eta_of_old_notebooks_is_for_algorithms_with_a_resource() -> None:
    assert settings_of(built_in("Hyperband"), RESOURCE, hyperbandEta=4)["eta"] == 4.0
    assert settings_of(built_in("Hyperband"), {**RESOURCE, "eta": "5"}, hyperbandEta=4)["eta"] == 5.0
    assert "eta" not in settings_of(built_in("Random"), {}, hyperbandEta=4)
    assert settings_of(Installed(), {}, hyperbandEta=4) == {}


def test_an_eta_that_is_a_parameter_of_an_installed_one_is_its_own() -> None:
    assert settings_of(Installed(), {"eta": "0.05"}, hyperbandEta=4) == {"eta": "0.05"}


@pytest.mark.parametrize(("least", "most"), [("9", "3"), ("28", "27")])
def test_a_resource_below_the_least_names_both(least: str, most: str) -> None:
    with pytest.raises(ServiceError) as caught:
        settings_of(built_in("Hyperband"), {**RESOURCE, "ResourceValue": most, "MinResource": least})
    assert caught.value.metadata["field"] == "algoParams.ResourceValue"
    assert f"{most} is not valid" in caught.value.message
    assert caught.value.message.endswith(f"at least {least}, the MinResource")


def test_additional_metrics_are_read_and_change_nothing() -> None:
    given = {"seconds": "minimize", "accuracy": "Maximise", "rate": "latest"}
    assert settings_of(Installed(), {}, additionalMetrics=given) == settings_of(Installed(), {})
    with pytest.raises(ServiceError) as caught:
        settings_of(Installed(), {}, additionalMetrics={"seconds": "least"})
    assert caught.value.metadata["field"] == "algoDef.additionalMetrics.seconds"
