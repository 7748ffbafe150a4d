"""What is known of every algorithm that a user installs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PluginFacts:
    """`domain.plan.AlgorithmFacts` of one, be it installed still or removed: it gets its settings as they come."""

    name: str
    takes_experiments = False
    needs_resource = False
    max_objectives = 1
    takes_start_points = False
    takes_warm_start = False

    def read_settings(self, given: Mapping[str, str]) -> Mapping[str, Any]:
        return dict(given)
