"""From what a study asks for to a training that may be started."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from servicekit.errors import Code, ServiceError, invalid
from servicekit.identity import Identity, acting_as
from servicekit.jobs import MAX_SECONDS

from training_service.domain.runs import Training
from training_service.domain.trials import (
    BATCH_SIZE,
    MAX_CONFIG_BYTES,
    TrialParts,
    check_user_defined,
    read_batch_size,
)
from training_service.usecases.ports import ModelFacts, Models
from training_service.usecases.prepare_training import PrepareTraining
from training_service.usecases.training_request import TrainingRequest, check_request
from training_service.usecases.trial_fields import as_tuning_knows

MAX_OWNER_CHARACTERS = 256
MAX_STUDY_CHARACTERS = 128
FIELD = "hyperParams"
ITERATIONS = "maxiteration"
# Names of frameworks that say the accelerator, too.
_ELASTIC = {"pytorchonelastic": "PyTorch", "edtpytorch": "PyTorch", "edttensorflow": "TensorFlow"}


@dataclass(frozen=True)
class TrialRequest:
    """What a study asks for; see TrialSpec."""

    model_name: str
    owner: str
    study: str
    number: int = 0
    model_uid: str = ""
    owner_is_administrator: bool = False
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    user_defined: Mapping[str, Any] = field(default_factory=dict)
    framework: str = ""
    batch_size: int = 0
    workers: int = 0
    distribute: bool | None = None
    gpus: int = 0
    sync_mode: str = ""
    weights: str = ""
    instance_group: str = ""
    max_iterations: int = 0
    min_iterations: int = 0
    max_seconds: float = 0.0


@dataclass(frozen=True)
class PreparedTrial:
    """A training that is not stored yet, and what people should know of it."""

    training: Training
    warnings: Sequence[str]


class PrepareTrial:
    """Callable with an id, a request and values that parameters may get besides; models and datasets are asked in the
    name of the owner. 400 names fields as the client of a tuning knows them. Nothing is kept."""

    def __init__(self, models: Models, prepare: PrepareTraining) -> None:
        self._models, self._prepare = models, prepare

    async def __call__(
        self, trial_id: str, request: TrialRequest, candidates: Mapping[str, Sequence[Any]] | None = None
    ) -> PreparedTrial:
        _check(request)
        with acting_as(Identity(user=request.owner, is_admin=request.owner_is_administrator)):
            return await self._prepared(trial_id, request, candidates or {})

    async def _prepared(
        self, trial_id: str, request: TrialRequest, candidates: Mapping[str, Sequence[Any]]
    ) -> PreparedTrial:
        model = await self._model(request)
        framework = request.framework or model.framework
        if base := _ELASTIC.get(framework.casefold()):
            if model.accelerator != "Elastic":
                allowed = f"{model.framework}, because the accelerator of {model.name!r} is not Elastic"
                raise invalid("resDef.framework", framework, allowed)
            framework = base
        given, batch_size = dict(request.hyperparameters), request.batch_size
        if BATCH_SIZE in given:
            batch_size = read_batch_size(f"{FIELD}.{BATCH_SIZE}", given.pop(BATCH_SIZE))
        if request.max_iterations:
            given.setdefault(ITERATIONS, request.max_iterations)
        for value in candidates.get(BATCH_SIZE, ()):
            read_batch_size(f"{FIELD}.{BATCH_SIZE}", value)
        others = {name: values for name, values in candidates.items() if name != BATCH_SIZE}
        settled = await self._models.settle(model.name, given, others, accelerator=model.accelerator, field=FIELD)
        check_user_defined(FIELD, request.user_defined, (*settled.known, BATCH_SIZE))
        counts_epochs = _counts_epochs(model, settled.values)
        if counts_epochs:
            own = [request.hyperparameters[ITERATIONS]] if ITERATIONS in request.hyperparameters else []
            _check_iterations(model, [*own, *candidates.get(ITERATIONS, ())])
        asked = TrainingRequest(
            # No name that a user may give.
            name=f"trial {trial_id}",
            framework=framework,
            cluster_size=1 if request.distribute is False else request.workers or 1,
            sync_mode=request.sync_mode,
            checkpoints_kept=1,
            # What fails with these values would fail again.
            max_restarts=0,
            max_seconds=math.ceil(request.max_seconds),
            trial=TrialParts(
                study=request.study,
                number=request.number,
                hyperparameter=settled.values,
                user_defined=request.user_defined,
                batch_size=batch_size,
                gpus_per_worker=request.gpus,
                weights=request.weights,
                instance_group=request.instance_group,
            ),
        )
        try:
            check_request(asked)
            training = await self._prepare(model, asked, trial_id, trial_id)
        except ServiceError as error:
            raise as_tuning_knows(error) from error
        size = len(json.dumps(training.config).encode())
        if size > MAX_CONFIG_BYTES:
            raise invalid(FIELD, f"values of {size} bytes", f"at most {MAX_CONFIG_BYTES} bytes in all")
        return PreparedTrial(training, _warnings(request, training, counts_epochs=counts_epochs))

    async def _model(self, request: TrialRequest) -> ModelFacts:
        model = await self._models.get(request.model_name)
        if request.model_uid and model.uid != request.model_uid:
            message = f"model {model.name!r} was deleted; another one has its name now"
            raise ServiceError(Code.NOT_FOUND, "NOT_FOUND", message, {"kind": "model", "name": model.name})
        return model


def _check(request: TrialRequest) -> None:
    """400 for what can be judged without looking anything up, but for what other trainings have, too."""
    for place, text, most in (
        ("owner", request.owner, MAX_OWNER_CHARACTERS),
        ("study", request.study, MAX_STUDY_CHARACTERS),
    ):
        if not text.strip() or len(text) > most or "\0" in text:
            raise invalid(place, text, f"a text of 1 to {most} characters, none of them NUL")
    if request.workers < 0:
        raise invalid("resDef.workerNum", request.workers, "1 or more")
    if request.gpus < 0:
        raise invalid("resDef.gpuNum", request.gpus, "0 or more")
    if request.batch_size:
        read_batch_size("resDef.batchsize", request.batch_size)
    if request.max_iterations < 0:
        raise invalid("resDef.maxiteration", request.max_iterations, "1 or more")
    most_iterations = request.max_iterations or math.inf
    if not 0 <= request.min_iterations <= most_iterations:
        limit = f"1 to {request.max_iterations}, maxiteration" if request.max_iterations else "1 or more"
        raise invalid("resDef.miniteration", request.min_iterations, limit)
    if not 0 <= request.max_seconds <= MAX_SECONDS:
        raise invalid("max_seconds", request.max_seconds, f"0 to {MAX_SECONDS}")


def _counts_epochs(model: ModelFacts, hyperparameter: Mapping[str, Any]) -> bool:
    """Whether maxiteration limits nothing: FabricModel trains the epochs that its program says, and only in TensorFlow
    the parameter module makes epochs of iterations, where none are given."""
    return model.accelerator == "Elastic" and (model.framework == "PyTorch" or bool(hyperparameter.get("epoch")))


def _check_iterations(model: ModelFacts, values: Sequence[Any]) -> None:
    """400 for a parameter, or the resource of an algorithm, that would make no trial different."""
    if values:
        allowed = (
            f"epoch in its place, as parameter or ResourceName: elastic trainings of {model.name!r} count in epochs"
        )
        raise invalid(f"{FIELD}.{ITERATIONS}", values[0], allowed)


def _warnings(request: TrialRequest, training: Training, *, counts_epochs: bool) -> list[str]:
    found = []
    # Published clients cannot leave it out.
    if request.max_iterations and counts_epochs:
        found.append(
            f"resDef.maxiteration: {request.max_iterations} is not used, as elastic trainings of this model count in "
            "epochs; the hyperparameter epoch limits them"
        )
    if request.distribute is False and request.workers > 1:
        found.append(f"resDef.workerNum: {request.workers} is not used, as distribute is false; a trial has 1 worker")
    if request.gpus and not training.group.gpus:
        found.append(f"resDef.gpuNum: {training.group.name} has no GPUs; trials run on its slots")
    return found
