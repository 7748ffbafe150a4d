"""The folders of runs: `trainings/<uid>/{code,checkpoints,spec.json}` and `validations/<uid>/{spec.json,output}`."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from servicekit.folders import copy_folder, remove_folder, sync_folder, write_file
from workerkit.trial_results import TrialResults, read_trial_results

from training_service.domain.removals import Removal
from training_service.domain.runs import Run, Training, Validation
from training_service.domain.specs import Spec, TrainingSpec, ValidationSpec, program_of
from training_service.frameworks.registry import framework_named
from training_service.storage.trial_files import CONFIG, read_config


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

    async def remove(self, removal: Removal) -> None:
        await asyncio.to_thread(remove_folder, self._home / f"{removal.kind}s" / removal.uid)

    def weight_file(self, training: Training) -> str | None:
        return framework_named(training.framework).weight_file(self.checkpoints(training.uid))

    def missing_program(self, training: Training) -> str:
        program = framework_named(training.framework).inference_program
        return "" if not program or (self._folder(training) / "code" / program).is_file() else program

    def results(self, training: Training) -> TrialResults:
        # The folder of a run is its program's $RESULT_DIR.
        folder = self._folder(training)
        return read_trial_results(folder, folder)

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
        added = {}
        if training.is_trial and not code.exists():
            config = read_config(Path(training.model_path)) | training.config
            added[CONFIG] = json.dumps(config, indent=1)
        # Later edits of the model do not touch this training.
        _copy_once(Path(training.model_path), code, follow_links=True, added=added)
        spec = TrainingSpec(
            code=str(code),
            train_dir=str(checkpoints),
            weights=training.weights,
            data=training.data,
            parameters={
                "hyperparameter": training.hyperparameter,
                "batch_size": training.batch_size,
                "test_interval": training.test_interval,
                "test_iteration": training.test_iterations,
                "checkpoint_interval_steps": training.checkpoint_interval,
                "checkpoints_kept": training.checkpoints_kept,
                "distribute_strategy": training.distribute_strategy,
            },
            framework=training.framework,
            program=program_of(code, is_elastic=training.is_elastic),
            command=shlex.split(training.command),
            weights_url=training.weights_url,
            sync_mode=training.sync_mode,
            max_workers=training.most_workers if training.is_elastic else 0,
        )
        return ["python", "-m", "training_service.worker.run_training", _write(spec, folder)]

    def _prepare_validation(self, validation: Validation) -> Sequence[str]:
        folder = self._folder(validation)
        folder.mkdir(parents=True, exist_ok=True)
        code = self._home / "trainings" / validation.training_uid / "code"
        if validation.inference_text:
            # The training's files stay as they are.
            own = folder / "code"
            program = framework_named(validation.framework).inference_program
            _copy_once(code, own, follow_links=False, added={program: validation.inference_text})
            code = own
        spec = ValidationSpec(
            code=str(code),
            model=str(self.checkpoints(validation.training_uid)),
            input_dir=validation.input_dir,
            output_dir=str(folder / "output"),
            label_file=str(Path(validation.input_dir).parent / "labels.txt"),
            threshold=validation.threshold,
            metrics=validation.metrics,
            framework=validation.framework,
            dataset_type=validation.dataset_type,
        )
        return ["python", "-m", "training_service.worker.run_validation", _write(spec, folder)]


def _copy_once(
    source: Path, code: Path, *, follow_links: bool, added: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Copy `source`, and the texts `added` by name, to `code`: whole or not at all, and durable.

    What is there stays as it is: a program may run from it, though nobody heard that its job was accepted.
    """
    if code.exists():
        return
    draft = code.with_name(f".{code.name}.draft")
    remove_folder(draft)
    try:
        copy_folder(source, draft, follow_links=follow_links)
        for name, text in added.items():
            _make_way(draft / name)
            write_file(draft / name, text)
        sync_folder(draft)
    except OSError:
        # A disk that is full should not stay so because of this.
        remove_folder(draft)
        raise
    draft.rename(code)
    sync_folder(code.parent)


def _make_way(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)


def _write(spec: Spec, folder: Path) -> str:
    """Write the specification of the run in `folder`, durable with the folder's own name; its path."""
    spec.write(folder / "spec.json")
    for names in (folder, folder.parent):
        sync_folder(names)
    return str(folder / "spec.json")
