"""Start a validation of a finished training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from servicekit.errors import invalid
from servicekit.identity import current_identity
from servicekit.names import check_name
from servicekit.times import utc_now

from training_service.domain.runs import Status, Validation, metrics_of
from training_service.usecases.ports import Models, Trainings, Validations


@dataclass(frozen=True)
class ValidationRequest:
    """The body of a start request."""

    name: str
    training: str
    metrics: Sequence[str]
    threshold: float = 0.0


class StartValidation:
    """Callable with a model's name and a request; returns the stored validation."""

    def __init__(
        self, validations: Validations, trainings: Trainings, models: Models, wake: Callable[[], None]
    ) -> None:
        self._validations, self._trainings = validations, trainings
        self._models, self._wake = models, wake

    async def __call__(self, model_name: str, request: ValidationRequest) -> Validation:
        model = await self._models.get(model_name)
        check_name("valName", request.name)
        if not 0.0 <= request.threshold <= 1.0:
            raise invalid("threshold", request.threshold, "0 to 1")
        training = await self._trainings.find(model.uid, request.training)
        if training is None:
            known = [known.name for known in await self._trainings.of_model(model.uid)]
            raise invalid("trainName", request.training, known)
        if training.status is not Status.FINISHED:
            raise invalid("trainName", request.training, f"a FINISHED training; this one is {training.status}")
        metrics = _check_metrics(request.metrics, training.dataset_type)
        validation = Validation(
            uid=uuid4().hex,
            name=request.name,
            model_uid=model.uid,
            model_name=model.name,
            dataset_name=training.dataset_name,
            owner=current_identity().user,
            group=training.group,
            created_at=utc_now(),
            job_id=uuid4().hex,
            training_uid=training.uid,
            training_name=training.name,
            framework=training.framework,
            metrics=metrics,
            threshold=request.threshold,
            input_dir=training.data["test"],
        )
        await self._validations.add(validation)
        self._wake()
        return validation


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
