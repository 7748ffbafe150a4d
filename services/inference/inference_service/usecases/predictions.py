"""Look at, stop and delete predictions."""

from __future__ import annotations

from collections.abc import Callable

from servicekit.errors import conflict, invalid, not_found
from servicekit.identity import current_identity

from inference_service.domain.predictions import Prediction, ResultPage, Status
from inference_service.usecases.ports import Catalog, InferenceModels, Jobs, Predictions, Workspace


class PredictionQueries:
    """What callers may do with predictions that exist."""

    def __init__(
        self,
        predictions: Predictions,
        models: InferenceModels,
        catalog: Catalog,
        jobs: Jobs,
        workspace: Workspace,
        wake: Callable[[], None],
    ) -> None:
        self._predictions, self._models, self._catalog = predictions, models, catalog
        self._jobs, self._workspace, self._wake = jobs, workspace, wake

    async def list_visible(self, model_name: str | None) -> list[Prediction]:
        """The caller's, oldest first; 404 when a model is named that nobody knows."""
        identity = current_identity()
        found = await self._predictions.all(model_name)
        if model_name and not found and await self._models.find(model_name) is None:
            await self._catalog.get(model_name)
        return [prediction for prediction in found if identity.may_access(prediction.owner)]

    async def get(self, name: str) -> Prediction:
        """One; 404, 403."""
        prediction = await self._predictions.find(name)
        if prediction is None:
            raise not_found("prediction", name)
        current_identity().require_access("prediction", name, prediction.owner)
        return prediction

    async def results(self, name: str, start: int, length: int | None) -> ResultPage:
        """Of a finished one, `length` at most from number `start` on; 409 with the reason while there are none."""
        if start < 0:
            raise invalid("start", start, "a whole number of at least 0")
        if length is not None and length < 1:
            raise invalid("length", length, "a whole number of at least 1")
        prediction = await self.get(name)
        if prediction.status is not Status.FINISHED:
            because = f": {prediction.status_message}" if prediction.status_message else ""
            raise conflict(
                f"prediction {name!r} has no results, it is {prediction.status}{because}",
                reason="NOT_FINISHED",
                metadata={"name": name, "status": str(prediction.status)},
            )
        return await self._workspace.results(prediction, start, length)

    async def stop(self, name: str) -> None:
        """Ask for the end; what has ended already stays as it is."""
        prediction = await self.get(name)
        if not prediction.status.is_final:
            await self._predictions.request_stop(prediction.uid)
            self._wake()

    async def delete(self, name: str) -> None:
        """Remove an ended one, its files and its job; 409 while it is active. The row goes last: repeatable."""
        prediction = await self.get(name)
        if not prediction.status.is_final:
            wanted = "is being stopped; try again in a moment"
            state = wanted if prediction.stop_requested else f"is {prediction.status}; stop it first"
            raise conflict(
                f"prediction {name!r} {state}",
                reason="IN_USE",
                metadata={"name": name, "status": str(prediction.status)},
            )
        await self._jobs.delete(prediction.job_id)
        await self._workspace.remove(prediction.uid)
        await self._predictions.delete(prediction.uid)
