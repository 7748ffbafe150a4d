"""Look at inference models and their versions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from servicekit.errors import not_found
from servicekit.identity import current_identity
from servicekit.times import utc_now

from inference_service.domain.models import InferenceModel
from inference_service.usecases.ports import InferenceModels
from inference_service.usecases.residency import Residency


@dataclass(frozen=True)
class ServedModelView:
    """A model, whether all that is READY of it is in memory, and when it was last asked for."""

    model: InferenceModel
    is_loaded: bool
    last_used_at: datetime | None


class ServedModelQueries:
    """What callers may see; administrators see all."""

    def __init__(self, models: InferenceModels, residency: Residency) -> None:
        self._models, self._residency = models, residency

    async def list_visible(self) -> list[ServedModelView]:
        """Oldest first."""
        identity = current_identity()
        return [self.view(model) for model in await self._models.all() if identity.may_access(model.owner)]

    async def get(self, name: str) -> ServedModelView:
        """One; 404, 403."""
        return self.view(await find_served_model(self._models, name))

    def view(self, model: InferenceModel) -> ServedModelView:
        """With what is known of its use beside what was stored of it."""
        at, used = model.last_used_at, self._residency.used_at(model.name)
        if used is not None:
            at = utc_now() - timedelta(seconds=self._residency.clock() - used)
        return ServedModelView(model, self._residency.serves(model), at)


async def find_served_model(models: InferenceModels, name: str) -> InferenceModel:
    """The caller's; 404, 403."""
    model = await models.find(name)
    if model is None:
        raise not_found("inference model", name)
    current_identity().require_access("inference model", name, model.owner)
    return model
