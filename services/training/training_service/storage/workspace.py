"""The folders of runs: `trainings/<uid>/{code,checkpoints,spec.json}` and `validations/<uid>/{spec.json,output}`."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from training_service.domain.runs import Run, Training, Validation
from training_service.domain.specs import TrainingSpec, ValidationSpec
from training_service.frameworks.registry import framework_named

MAIN, ELASTIC_MAIN = "main.py", "elastic-main.py"


class DiskWorkspace:
    """Run folders below the platform's home."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def folder(self, run: Run) -> str:
        return str(self._folder(run))

    async def prepare_training(self, training: Training) -> Sequence[str]:
        return await asyncio.to_thread(self._prepare_training, training)

    async def prepare_validation(self, validation: Validation) -> Sequence[str]:
        return await asyncio.to_thread(self._prepare_validation, validation)

    async def remove(self, run: Run) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder(run), ignore_errors=True)

    def weight_file(self, training: Training) -> str | None:
        return framework_named(training.framework).weight_file(self.checkpoints(training.uid))

    def path_of(self, training: Training) -> str:
        """The folder of a training's weights and checkpoints."""
        return str(self.checkpoints(training.uid))

    def checkpoints(self, training_uid: str) -> Path:
        """As `path_of`, by uid."""
        return self._home / "trainings" / training_uid / "checkpoints"

    def _folder(self, run: Run) -> Path:
        return self._home / ("trainings" if isinstance(run, Training) else "validations") / run.uid

    def _prepare_training(self, training: Training) -> Sequence[str]:
        folder = self._folder(training)
        checkpoints = self.checkpoints(training.uid)
        checkpoints.mkdir(parents=True, exist_ok=True)
        code = folder / "code"
        if not code.exists():
            # The copy appears whole or not at all; later edits of the model do not touch this training.
            draft = folder / ".code.draft"
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(training.model_path, draft)
            draft.rename(code)
        spec = TrainingSpec(
            code=str(code),
            train_dir=str(checkpoints),
            weights=training.weights,
            data=training.data,
            parameters={
                "hyperparameter": training.hyperparameter,
                "batch_size": training.batch_size,
                "test_interval": training.test_interval,
                "test_iteration": training.test_iteration,
                "checkpoint_interval_steps": training.checkpoint_interval,
                "checkpoints_kept": training.checkpoints_kept,
                "distribute_strategy": training.distribute_strategy,
            },
            framework=training.framework,
            program=ELASTIC_MAIN if training.is_elastic and (code / ELASTIC_MAIN).is_file() else MAIN,
            command=shlex.split(training.command),
            weights_url=training.weights_url,
            sync_mode=training.sync_mode,
            max_workers=training.cluster_size if training.is_elastic else 0,
        )
        spec.write(folder / "spec.json")
        return ["python", "-m", "training_service.worker.run_training", str(folder / "spec.json")]

    def _prepare_validation(self, validation: Validation) -> Sequence[str]:
        folder = self._folder(validation)
        folder.mkdir(parents=True, exist_ok=True)
        spec = ValidationSpec(
            code=str(self._home / "trainings" / validation.training_uid / "code"),
            model=str(self.checkpoints(validation.training_uid)),
            input_dir=validation.input_dir,
            output_dir=str(folder / "output"),
            label_file=str(Path(validation.input_dir).parent / "labels.txt"),
            threshold=validation.threshold,
            metrics=validation.metrics,
            framework=validation.framework,
        )
        spec.write(folder / "spec.json")
        return ["python", "-m", "training_service.worker.run_validation", str(folder / "spec.json")]
