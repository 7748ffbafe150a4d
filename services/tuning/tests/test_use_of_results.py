"""What of the best trial of a tuning goes into a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from studies_room import study_of
from tuning_service.domain.study import Kind, Trial
from tuning_service.usecases.tunings import TrialModel, UseResult

# As the training service tells it: what the trial had, the model's own settings among it.
HELD = TrialModel({"learningrate": 0.5, "epoch": 3, "solvertype": "Adam"}, 64)
RATE = {"name": "learningrate", "type": "Range", "dataType": "double", "minDbVal": 0, "maxDbVal": 1}
BATCH = {"name": "batchsize", "type": "Discrete", "dataType": "int", "discreteIntVal": [32, 64]}


class Played:
    """A tuning with its best trial, and the models and trainings around it."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.trial = Trial("s", 3, "3", dict(values))
        self.changes: list[TrialModel] = []

    async def numbered(self, study_uid: str, numbers: Sequence[int]) -> Sequence[Trial]:
        return [self.trial]

    async def model_of(self, trial: Trial) -> TrialModel:
        return HELD

    async def change(self, name: str, trial: TrialModel) -> None:
        self.changes.append(trial)

    async def copy(self, name: str, new_name: str, trial: TrialModel) -> None:
        self.changes.append(trial)


@pytest.mark.parametrize(
    ("resources", "parameters", "values", "batch_size"),
    [
        # What the model had when the trial ran is no result: it may have another one by now.
        ({}, [RATE], {"learningrate": 0.5}, 0),
        ({"batchsize": 0}, [RATE], {"learningrate": 0.5}, 0),
        ({"batchsize": 64}, [RATE], {"learningrate": 0.5}, 64),
        ({}, [RATE, BATCH], {"learningrate": 0.5, "batchsize": 64}, 64),
        # That one is the program's own.
        ({}, [RATE, {**BATCH, "userDefined": True}], {"learningrate": 0.5, "batchsize": 64}, 0),
    ],
)
async def test_the_batch_size_of_the_tuning_goes_into_the_model_and_no_other(
    resources: Mapping[str, Any], parameters: list[Any], values: Mapping[str, Any], batch_size: int
) -> None:
    request = {"algoDef": {"algorithm": "Random"}, "hyperParams": parameters, "resDef": resources}
    study = study_of(kind=Kind.MODEL_TUNING, request=request, model_name="digits", best=3)
    played = Played(values)
    use = UseResult(played, played, played)  # type: ignore[arg-type]
    await use.update(study)
    await use.create(study, "better")
    assert played.changes == [TrialModel({"learningrate": 0.5}, batch_size)] * 2
