"""The best ones so far, changed a little: an evolution strategy to install.

Its algoParams are `parents` (how many are kept, 4) and `RandomSeed`. It minimizes `loss`, so it knows both directions.
"""

import random

from plugins.core.base_plugin_opt import BasePluginOptimizer


class PluginOptimizer(BasePluginOptimizer):
    def __init__(self, name, hyper_parameters, **kwargs):
        super().__init__(name, hyper_parameters, **kwargs)
        self.random = random.Random(int(kwargs.get("RandomSeed", "1")))
        self.keep = int(kwargs.get("parents", "4"))
        self.parents = []

    def search(self, number_samples, last_exp_results):
        evaluated = [
            (one["loss"], one["id"], one["hyperparams"]) for one in last_exp_results if one["loss"] is not None
        ]
        self.parents = sorted(self.parents + evaluated, key=lambda one: one[:2])[: self.keep]
        return [self.child() for _ in range(number_samples)]

    def child(self):
        parent = self.random.choice(self.parents)[2] if self.parents else None
        return {one["name"]: self.change(one, parent and parent[one["name"]]) for one in self.hyper_parameters}

    def change(self, parameter, value):
        """A value near `value`; any, when there is none yet."""
        kind = parameter["dataType"]
        if parameter["type"].lower() == "discrete":
            values = parameter[{"INT": "discreteIntVal", "DOUBLE": "discreteDbVal", "STR": "discreateStrVal"}[kind]]
            return value if value is not None and self.random.random() < 0.7 else self.random.choice(values)
        if parameter["type"].lower() != "range":
            return parameter["fixedVal"]
        low, high = (float(parameter[end + {"INT": "IntVal", "DOUBLE": "DbVal"}[kind]]) for end in ("min", "max"))
        if parameter.get("power"):
            low, high = float(parameter["power"]) ** low, float(parameter["power"]) ** high
        near = self.random.uniform(low, high) if value is None else self.random.gauss(value, (high - low) / 10)
        near = min(high, max(low, near))
        return round(near) if kind == "INT" else near

    def get_state(self):
        return {"random": self.random.getstate(), "parents": self.parents}

    def set_state(self, state_dict):
        self.random.setstate(state_dict["random"])
        self.parents = state_dict["parents"]
