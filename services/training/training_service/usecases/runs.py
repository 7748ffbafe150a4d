"""Look at, stop and delete the runs of a model; the same for trainings and validations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic

from servicekit.errors import invalid, not_found
from servicekit.identity import current_identity
from servicekit.paths import confined

from training_service.domain.runs import Run, Training
from training_service.usecases.ports import Models, R, Runs, Workspace


class ModelRuns(Generic[R]):
    """The runs of one kind. Only runs of the model that has the name now are seen."""

    def __init__(
        self,
        kind: str,
        runs: Runs[R],
        models: Models,
        *,
        wake: Callable[[], None],
        wake_removals: Callable[[], None],
    ) -> None:
        self._kind = kind
        self._runs, self._models = runs, models
        self._wake, self._wake_removals = wake, wake_removals

    async def list(self, model_name: str) -> list[R]:
        """The caller's runs of a model, oldest first."""
        model = await self._models.get(model_name)
        identity = current_identity()
        return [run for run in await self._runs.of_model(model.uid) if identity.may_access(run.owner)]

    async def get(self, model_name: str, name: str) -> R:
        """One run; 404, or 403 when it is another user's."""
        model = await self._models.get(model_name)
        run = await self._runs.find(model.uid, name)
        if run is None:
            raise not_found(self._kind, name)
        current_identity().require_access(self._kind, name, run.owner)
        return run

    async def stop(self, model_name: str, name: str) -> None:
        """Ask for the end; what has ended already stays as it is."""
        run = await self.get(model_name, name)
        if not run.status.is_final:
            await self._runs.request_stop(run.uid)
            self._wake()

    async def delete(self, model_name: str, name: str) -> None:
        """Take an ended run out of sight and order its files and job removed; 409 while it is active or used."""
        run = await self.get(model_name, name)
        await self._runs.remove(run.uid)
        self._wake_removals()


class ModelTrainings(ModelRuns[Training]):
    """Trainings, and the weights that they wrote."""

    def __init__(
        self,
        trainings: Runs[Training],
        models: Models,
        workspace: Workspace,
        *,
        wake: Callable[[], None],
        wake_removals: Callable[[], None],
    ) -> None:
        super().__init__("training", trainings, models, wake=wake, wake_removals=wake_removals)
        self._workspace = workspace

    async def weight_file(self, model_name: str, name: str) -> str:
        """Name of the training's weight file; 404 while there is none."""
        training = await self.get(model_name, name)
        file = self._workspace.weight_file(training)
        if file is None:
            raise not_found("weight file of training", name)
        return file

    async def weights(self, model_name: str, name: str, file: str = "") -> Path:
        """The weight file itself, or the `file` that is named below its folder; 404 while there is none."""
        training = await self.get(model_name, name)
        file = file or await self.weight_file(model_name, name)
        path = confined(Path(self._workspace.path_of(training)), file, "file")
        if path.is_dir():
            raise invalid("file", file, "a file; this is a folder")
        if not path.is_file():
            raise not_found("weight file", file)
        return path


def kind_of(run: Run) -> str:
    """The word by which people and the scheduling service know this kind of run."""
    return "training" if isinstance(run, Training) else "validation"
