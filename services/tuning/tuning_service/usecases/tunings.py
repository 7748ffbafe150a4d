"""Start a tuning of a model, and make a model of what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol
from uuid import uuid4

from servicekit.errors import already_exists, invalid, not_found
from servicekit.identity import current_identity
from servicekit.names import check_name

from tuning_service.domain.fields import Fields
from tuning_service.domain.plan import Plan, algorithm_parameters, outline
from tuning_service.domain.space import Value
from tuning_service.domain.study import Kind, Study, Trial
from tuning_service.domain.tuning import completed, user_defined_names
from tuning_service.usecases.ports import Algorithms, Studies, Wake
from tuning_service.usecases.start_hyper_search import (
    find_algorithm,
    made_name,
    read_request,
    seed_of,
)
from tuning_service.usecases.warm_start import findings

# A parameter of this name, and the field of resDef.
BATCH_SIZE = "batchsize"


@dataclass(frozen=True)
class TrialModel:
    """What a model would need of a trial: hyperparameters that held, by the contract's names, its batch size, which is
    0 where the model keeps its own, and the parameters of the program's own."""

    hyperparameters: Mapping[str, Value | bool]
    batch_size: int
    user_defined: Mapping[str, Value | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckedPlan:
    """What a tuning's trials would run on, and what its user should know of that."""

    model_uid: str
    group_id: str
    group_name: str
    warnings: Sequence[str] = ()


class Trainings(Protocol):
    """The training service, as tunings need it beside `ports.Runner`."""

    async def check_plan(self, study: Study, plan: Plan) -> CheckedPlan:
        """400 for what can never run, 404 without the model."""

    async def model_of(self, trial: Trial) -> TrialModel:
        """What a model of this trial would be; 404 when it is gone."""


class Models(Protocol):
    """The models service, asked with the caller's own rights."""

    async def uid_of(self, name: str) -> str:
        """404 without the model, 403 when it is another user's."""

    async def copy(self, name: str, new_name: str, trial: TrialModel) -> None:
        """A new model of the files and settings of one, with a trial's parameters; 409 when the name is taken."""

    async def change(self, name: str, trial: TrialModel) -> None:
        """Give a model a trial's parameters."""


class StartTuning:
    """Callable with a model's name and a request in the wire's names; the stored study. 400 for what can never run."""

    def __init__(
        self,
        studies: Studies,
        algorithms: Algorithms,
        trainings: Trainings,
        now: Callable[[], datetime],
        wake: Wake,
    ) -> None:
        self._studies, self._algorithms, self._trainings = studies, algorithms, trainings
        self._now, self._wake = now, wake

    async def __call__(self, model_name: str, tree: Mapping[str, Any]) -> Study:
        identity = current_identity()
        fields = Fields("", tree)
        name = check_name("hpoName", fields.text("hpoName", default=made_name(identity.user)))
        request = completed(tree, await find_algorithm(fields, self._algorithms))
        plan = await read_request(Fields("", request), self._algorithms, Kind.MODEL_TUNING)
        study = Study(
            uid=uuid4().hex,
            name=name,
            kind=Kind.MODEL_TUNING,
            owner=identity.user,
            owner_is_administrator=identity.is_admin,
            request=request,
            group_id="",
            group_name="",
            seed=seed_of(plan),
            created_at=self._now(),
            model_name=model_name,
            **outline(Fields("", request), plan),
        )
        checked = await self._trainings.check_plan(study, plan)
        study.model_uid, study.warnings = checked.model_uid, checked.warnings
        study.group_id, study.group_name = checked.group_id, checked.group_name
        if await self._studies.find(Kind.MODEL_TUNING, study.model_uid, name):
            raise already_exists("tuning", name)
        study.known = await findings(plan, Kind.MODEL_TUNING, study.model_uid, self._studies)
        await self._studies.add(study)
        self._wake()
        return study


class UseResult:
    """Make a model of the best trial of a tuning."""

    def __init__(self, studies: Studies, trainings: Trainings, models: Models) -> None:
        self._studies, self._trainings, self._models = studies, trainings, models

    async def create(self, study: Study, new_name: str) -> None:
        """A new model; 400 while no trial has a value, 409 when the name is taken."""
        check_name("newmodelname", new_name)
        await self._models.copy(study.model_name, new_name, await self._best(study))

    async def update(self, study: Study) -> None:
        """The model itself; 400 while no trial has a value."""
        await self._models.change(study.model_name, await self._best(study))

    async def _best(self, study: Study) -> TrialModel:
        if not study.best:
            raise invalid(
                "tuningname", study.name, f"a tuning with a trial that has a value; this one is {study.status}"
            )
        found = await self._studies.numbered(study.uid, [study.best])
        if not found:
            raise not_found("tuning", study.name)
        model = await self._trainings.model_of(found[0])
        # Those of the model stay as they are now; how long a trial of Hyperband was trained is no parameter of it.
        searched = set(found[0].values) - {algorithm_parameters(Fields("", study.request)).get("ResourceName", "")}
        chosen = {name: value for name, value in model.hyperparameters.items() if name in searched}
        # What was found was found with it.
        has_batch_size = BATCH_SIZE in searched - user_defined_names(study.request) or bool(
            Fields("", study.request).object("resDef").whole(BATCH_SIZE)
        )
        return replace(model, hyperparameters=chosen, batch_size=model.batch_size if has_batch_size else 0)
