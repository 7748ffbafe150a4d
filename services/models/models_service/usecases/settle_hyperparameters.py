"""What a training would have when values of a search are put over a model's own hyperparameters."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from servicekit.errors import invalid, not_found
from servicekit.identity import current_identity

from models_service.domain.hyperparameters import (
    Hyperparameters,
    Value,
    check_complete,
    check_duration,
    settle,
)
from models_service.domain.prototxt import solver_fields
from models_service.domain.searched_values import (
    check_value,
    known_hyperparameters,
    read_values,
)
from models_service.domain.words import ACCELERATORS, read_word
from models_service.usecases import folders
from models_service.usecases.ports import Catalog

MAX_VALUES = 100_000


@dataclass(frozen=True)
class Settled:
    """What holds, and the names of all that the model's framework has."""

    hyperparameters: Hyperparameters
    known: Sequence[str]


class SettleHyperparameters:
    """Callable with a model's name and values; nothing is changed. 404 and 403 as for the model itself, 400 naming
    `field`.NAME for what the model could not be given, and for one of the `candidates` that could never hold."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def __call__(
        self,
        model_name: str,
        given: Mapping[str, Value],
        candidates: Mapping[str, Sequence[Value]],
        *,
        accelerator: str = "",
        field: str = "hyperparameter",
    ) -> Settled:
        model = await self._catalog.find_model(model_name)
        if model is None:
            raise not_found("model", model_name)
        current_identity().require_access("model", model_name, model.owner)
        if sum(map(len, candidates.values())) > MAX_VALUES:
            raise invalid(field, "too many values", f"at most {MAX_VALUES}")
        for name, values in candidates.items():
            for value in values:
                check_value(name, value, model.framework, field)
        used = read_word("accelerator", accelerator, ACCELERATORS) if accelerator else model.accelerator
        values_given = read_values(given, model.framework, field)
        settled = settle(model.hyperparameters, values_given, model.framework, field)
        said = {}
        if model.framework == "Caffe":
            text = await asyncio.to_thread(folders.solver_text, model.directory)
            said = await asyncio.to_thread(solver_fields, text)
        check_complete(settled, model.framework, used, said, field)
        check_duration(settled, model.framework, said, field)
        return Settled(settled, tuple(known_hyperparameters(model.framework)))
