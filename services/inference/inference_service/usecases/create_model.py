"""Serve a finished training."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import uuid4

from servicekit.errors import Code, ServiceError, already_exists, invalid
from servicekit.identity import Identity, acting_as, current_identity
from servicekit.names import check_name
from servicekit.times import utc_now

from inference_service.domain.models import ALL_PERCENT, RESERVED_NAMES, InferenceModel, ModelVersion
from inference_service.usecases.ports import (
    Catalog,
    InferenceModels,
    ModelFacts,
    ModelServer,
    Repository,
    TrainingFacts,
    Trainings,
)


@dataclass(frozen=True)
class InferenceModelRequest:
    """The body of a create request."""

    model_name: str
    training_name: str
    name: str = ""


class CreateInferenceModel:
    """Callable with a request; writes the row and makes the model visible, the loop does the rest."""

    def __init__(
        self,
        models: InferenceModels,
        catalog: Catalog,
        trainings: Trainings,
        repository: Repository,
        server: ModelServer,
        remove_if_deleted: Callable[[InferenceModel], Awaitable[bool]],
        wake: Callable[[], None],
    ) -> None:
        self._models, self._catalog, self._trainings = models, catalog, trainings
        self._repository, self._server = repository, server
        self._remove_if_deleted, self._wake = remove_if_deleted, wake

    async def __call__(self, request: InferenceModelRequest) -> InferenceModel:
        for field, value in (("modelName", request.model_name), ("trainName", request.training_name)):
            if not value:
                raise invalid(field, value, "a name")
        source = await self._catalog.get(request.model_name)
        training = await self._trainings.get(request.model_name, request.training_name)
        self._server.require()
        await check_training(self._repository, source, training)
        name = request.name or f"{source.name}-{training.name}"
        check_name("inferenceModelName", name, RESERVED_NAMES)
        model = InferenceModel(
            uid=uuid4().hex,
            name=name,
            owner=current_identity().user,
            source_model=source.name,
            template_name=source.template_name,
            dataset_name=source.dataset,
            instance_group=source.instance_group,
            created_at=utc_now(),
            versions=[make_version(1, source, training, percentage=ALL_PERCENT)],
        )
        former = await self._models.find(name)
        if former is not None and former.catalog_uid:
            # Deleted a moment ago, and the loop has not come by yet: the name is free.
            await self._remove_if_deleted(former)
        await self._models.add(model)
        try:
            await ensure_listed(self._catalog, model)
            await self._models.note_listed(model)
        except ServiceError as error:
            # Away or restarting: the loop does it. A refusal is the caller's to see, and nothing is left of it.
            if error.code is not Code.UNAVAILABLE:
                await self._models.delete(model.uid)
                raise
        self._wake()
        return model


async def check_training(repository: Repository, source: ModelFacts, training: TrainingFacts) -> None:
    """400 when it has not finished or cannot be served."""
    if training.status != "FINISHED":
        raise invalid("trainName", training.name, f"a FINISHED training; this one is {training.status}")
    if not repository.supports(source.framework):
        raise invalid("modelName", source.name, f"a model of {', '.join(repository.frameworks)}")
    if reason := await repository.refusal(source.framework, training.code_path, training.checkpoints_path):
        raise invalid("trainName", training.name, f"a training that can be served; of this one: {reason}")


def make_version(number: int, source: ModelFacts, training: TrainingFacts, percentage: int = 0) -> ModelVersion:
    """What is frozen of a training."""
    return ModelVersion(
        number=number,
        source_model=source.name,
        training_name=training.name,
        framework=source.framework,
        code_path=training.code_path,
        checkpoints_path=training.checkpoints_path,
        created_at=utc_now(),
        percentage=percentage,
    )


async def ensure_listed(catalog: Catalog, model: InferenceModel) -> None:
    """Make the model of type Inference that GET /models shows, unless it is there; 409 when the name is another's."""
    if model.catalog_uid:
        return
    first = model.versions[0]
    # What the owner may see was checked when it was asked for; the loop has no request to take rights from.
    with acting_as(Identity(user=model.owner, is_admin=True)):
        listed = await catalog.find(model.name)
        if listed is None:
            try:
                await catalog.create_inference(model, f"Serves training {first.training_name} of {model.source_model}")
            except ServiceError as error:
                # The request and the loop may both be here: whoever comes second finds what the first one made.
                if error.code is not Code.ALREADY_EXISTS:
                    raise
            listed = await catalog.get(model.name)
    ours = (model.owner, "Inference", first.checkpoints_path)
    if (listed.owner, listed.type, listed.weights_folder) != ours:
        raise already_exists("model", model.name)
    model.catalog_uid = listed.uid
