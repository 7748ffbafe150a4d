"""Whether, and by which versions, the caller's request may be answered."""

from __future__ import annotations

from dataclasses import dataclass

from servicekit.errors import Code, ServiceError, invalid

from inference_service.domain.models import ALL_PERCENT, InferenceModel, ModelState
from inference_service.usecases.ports import InferenceModels
from inference_service.usecases.residency import Residency
from inference_service.usecases.served_models import find_served_model

# The gateway may go on for so long: a rollback is in force within it.
LIFETIME_SECONDS = 1.0
# Less than the gateway waits for an answer.
LOAD_SECONDS = 15.0


@dataclass(frozen=True)
class Admission:
    """Percentages by version, all READY."""

    shares: dict[int, int]
    lifetime_seconds: float = LIFETIME_SECONDS


class AdmitInference:
    """Callable with a model, a version or nothing, and whether it is a look; from memory while nothing changes."""

    def __init__(self, models: InferenceModels, residency: Residency, load_seconds: float = LOAD_SECONDS) -> None:
        self._models, self._residency, self._load_seconds = models, residency, load_seconds

    async def __call__(self, name: str, version: str = "", is_look: bool = False) -> Admission:
        model = await find_served_model(self._models, name)
        shares = _shares(model, version)
        if not is_look:
            await self._residency.ensure(model, self._load_seconds)
            # The shares, or the model, may have changed while it was loaded.
            shares = _shares(await find_served_model(self._models, name), version)
        return Admission(shares)


def _shares(model: InferenceModel, version: str) -> dict[int, int]:
    return _named(model, version) if version else _divided(model)


def _named(model: InferenceModel, text: str) -> dict[int, int]:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise invalid("version", text, "the number of a version")
    version = model.version(int(text))
    if version.state is not ModelState.READY:
        raise _not_ready(model, version.number)
    return {version.number: ALL_PERCENT}


def _divided(model: InferenceModel) -> dict[int, int]:
    shares = {
        version.number: version.percentage
        for version in model.versions
        if version.percentage and version.state is ModelState.READY
    }
    if not shares:
        raise _not_ready(model, model.main_version)
    # A release before this one gave up what had a share: it leaves that to the others.
    shares[max(shares, key=lambda number: shares[number])] += ALL_PERCENT - sum(shares.values())
    return shares


def _not_ready(model: InferenceModel, number: int) -> ServiceError:
    version = model.version(number)
    because = f": {version.status_message}" if version.status_message else ""
    return ServiceError(
        Code.UNAVAILABLE,
        "NOT_READY",
        f"version {number} of inference model {model.name!r} is {version.state}{because}"[:2000],
        {"name": model.name, "version": str(number), "state": str(version.state)},
        retry_after_seconds=None if version.state is ModelState.FAILED else 1,
    )
