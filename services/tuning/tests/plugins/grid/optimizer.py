"""Every combination of some values of each parameter, in order: an algorithm to install.

`points`, an algoParam, is how many values are taken of a range without a step (5).
"""

import itertools

from plugins.core.base_plugin_opt import BasePluginOptimizer
from plugins.core.logger import logger


class PluginOptimizer(BasePluginOptimizer):
    def __init__(self, name, hyper_parameters, **kwargs):
        super().__init__(name, hyper_parameters, **kwargs)
        self.names = [parameter["name"] for parameter in hyper_parameters]
        points = int(kwargs.get("points", "5"))
        axes = [values_of(parameter, points) for parameter in hyper_parameters]
        self.combinations = list(itertools.product(*axes))
        self.next = 0
        logger.info("%s: %d combinations of %s", name, len(self.combinations), ", ".join(self.names))

    def search(self, number_samples, last_exp_results):
        for result in last_exp_results:
            logger.debug("%s: %s", result["hyperparams"], result["score"])
        chosen = self.combinations[self.next : self.next + number_samples]
        self.next += len(chosen)
        return [{name: values[place] for place, name in enumerate(self.names)} for values in chosen]


def values_of(parameter, points):
    kind = parameter["dataType"]
    if parameter["type"].lower() == "discrete":
        return parameter[{"INT": "discreteIntVal", "DOUBLE": "discreteDbVal", "STR": "discreateStrVal"}[kind]]
    if parameter["type"].lower() != "range":
        return [parameter["fixedVal"]]
    low, high = (float(parameter[end + {"INT": "IntVal", "DOUBLE": "DbVal"}[kind]]) for end in ("min", "max"))
    if parameter.get("step"):
        count = int((high - low) / float(parameter["step"]) + 1e-9) + 1
        exponents = [low + index * float(parameter["step"]) for index in range(count)]
    else:
        exponents = [low + (high - low) * index / max(1, points - 1) for index in range(points)]
    values = [float(parameter["power"]) ** x for x in exponents] if parameter.get("power") else exponents
    return sorted({round(value) for value in values}) if kind == "INT" else values
