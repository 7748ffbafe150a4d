"""Divide a model's traffic between its versions, and delete those that get none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from servicekit.errors import in_use, not_found

from inference_service.domain.models import InferenceModel
from inference_service.usecases.ports import InferenceModels, Predictions
from inference_service.usecases.served_models import find_served_model


class VersionTraffic:
    """Both are decided by the shares as they are: one after the other."""

    def __init__(self, models: InferenceModels, predictions: Predictions, wake: Callable[[], None]) -> None:
        self._models, self._predictions, self._wake = models, predictions, wake
        self._lock = asyncio.Lock()

    async def set(self, name: str, shares: Mapping[int, int]) -> InferenceModel:
        """Percentages by version; 400 unless they add up to 100 and all that get something are READY."""
        async with self._lock:
            model = await find_served_model(self._models, name)
            model.divide(shares)
            await self._models.save_traffic(model)
        return model

    async def delete(self, name: str, number: str) -> None:
        """409 while the version has a share, or a prediction uses it."""
        async with self._lock:
            model = await find_served_model(self._models, name)
            version = model.find_version(int(number)) if number.isascii() and number.isdigit() else None
            if version is None:
                raise not_found("version", f"{name}/{number}")
            if version.percentage:
                raise in_use("version", f"{name}/{number}", f"{version.percentage} % of the traffic")
            for prediction in await self._predictions.active():
                if (prediction.model_uid, prediction.model_version) == (model.uid, version.number):
                    raise in_use("version", f"{name}/{number}", f"prediction {prediction.name!r}")
            await self._models.delete_version(model.uid, version.number)
        self._wake()
