"""Plans of studies that were accepted, read anew from their stored requests."""

from __future__ import annotations

from tuning_service.domain.fields import Fields
from tuning_service.domain.plan import Plan, algorithm_name, read_plan
from tuning_service.domain.plugin_facts import PluginFacts
from tuning_service.domain.study import Study
from tuning_service.usecases.ports import Algorithms


async def stored_plan(study: Study, algorithms: Algorithms) -> Plan:
    """The plan of a study that was read whole, also when its algorithm was removed: its trials have to be stopped, and
    can be looked at, all the same. Only algorithms that users installed can be removed."""
    fields = Fields("", study.request)
    name = algorithm_name(fields)
    algorithm = await algorithms.find(name) or PluginFacts(name)
    return read_plan(fields, algorithm, study.kind.experiment_parameters)
