"""Start a validation of a finished training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from servicekit.errors import invalid
from servicekit.identity import current_identity
from servicekit.names import check_name
from servicekit.times import utc_now

from training_service.domain.runs import Status, Training, Validation, metrics_of
from training_service.usecases.ports import ModelFacts, Models, Trainings, Validations, Workspace

# It is kept with the validation's facts, of which lists have many.
MAX_PROGRAM_CHARACTERS = 1024 * 1024


@dataclass(frozen=True)
class ValidationRequest:
    """The body of a start request."""

    name: str
    training: str
    metrics: Sequence[str]
    threshold: float = 0.0
    max_silent_seconds: int = 0


class StartValidation:
    """Callable with a model's name and a request; returns the stored validation.

    403 when the training is another user's: its metrics tell about it.
    """

    def __init__(
        self,
        validations: Validations,
        trainings: Trainings,
        models: Models,
        workspace: Workspace,
        wake: Callable[[], None],
    ) -> None:
        self._validations, self._trainings = validations, trainings
        self._models, self._workspace, self._wake = models, workspace, wake

    async def __call__(self, model_name: str, request: ValidationRequest) -> Validation:
        model = await self._models.get(model_name)
        check_name("valName", request.name)
        if not 0.0 <= request.threshold <= 1.0:
            raise invalid("threshold", request.threshold, "0 to 1")
        if request.max_silent_seconds < 0:
            raise invalid("maxSilentSeconds", request.max_silent_seconds, "0 or more")
        identity = current_identity()
        training = await self._trainings.find(model.uid, request.training)
        if training is None:
            trainings = await self._trainings.of_model(model.uid)
            known = [known.name for known in trainings if identity.may_access(known.owner)]
            raise invalid("trainName", request.training, known)
        identity.require_access("training", training.name, training.owner)
        if training.status is not Status.FINISHED:
            raise invalid("trainName", request.training, f"a FINISHED training; this one is {training.status}")
        metrics = _check_metrics(request.metrics, training.dataset_type)
        inference_text = await self._inference_text(model, training)
        validation = Validation(
            uid=uuid4().hex,
            name=request.name,
            model_uid=model.uid,
            model_name=model.name,
            dataset_name=training.dataset_name,
            owner=identity.user,
            group=training.group,
            created_at=utc_now(),
            job_id=uuid4().hex,
            training_uid=training.uid,
            training_name=training.name,
            framework=training.framework,
            metrics=metrics,
            threshold=request.threshold,
            # Training saw the test split's loss, and may have been chosen by it.
            input_dir=training.data.get("val") or training.data["test"],
            dataset_type=training.dataset_type,
            inference_text=inference_text,
            max_silent_seconds=request.max_silent_seconds or training.max_silent_seconds,
        )
        await self._validations.add(validation)
        self._wake()
        return validation

    async def _inference_text(self, model: ModelFacts, training: Training) -> str:
        """The model's inference program as it is now if the training has none, else the template's; empty if it has."""
        file = self._workspace.missing_program(training)
        if not file:
            return ""
        text = await self._models.program(model.name, file)
        if text is None and model.template:
            text = await self._models.template_program(model.template, file)
        if text is None:
            allowed = f"a training with {file}; neither it nor model {model.name!r} nor its template has one"
            raise invalid("trainName", training.name, allowed)
        if len(text) > MAX_PROGRAM_CHARACTERS:
            allowed = f"a training with {file}; that of the model has more than {MAX_PROGRAM_CHARACTERS} characters"
            raise invalid("trainName", training.name, allowed)
        return text


def _check_metrics(names: Sequence[str], dataset_type: str) -> list[str]:
    valid = metrics_of(dataset_type)
    if not names:
        raise invalid("metrics", [], valid)
    spelled = {known.lower(): known for known in valid}
    for name in names:
        if name.lower() not in spelled:
            of = f" (those of {dataset_type} datasets)" if dataset_type else ""
            raise invalid("metrics", name, f"{', '.join(valid)}{of}")
    return list(dict.fromkeys(spelled[name.lower()] for name in names))
