"""`python -m training_service.worker.run_training SPEC.json`: one rank of a training."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from dlmesh_sdk.program_environment import alone_in_a_gang, program_environment
from workerkit import PrintedProgress
from workerkit.command import run_command
from workerkit.program import end_process

from training_service.domain.specs import TrainingSpec
from training_service.frameworks.registry import framework_named
from training_service.worker.initial_weights import fetch_weights


def main(spec_file: str) -> None:
    """Run the model's program or the command; SystemExit with a message when it ends without having written weights."""
    spec = TrainingSpec.read(spec_file)
    framework = framework_named(spec.framework)
    train_dir = Path(spec.train_dir)
    train_dir.mkdir(parents=True, exist_ok=True)
    folder = train_dir.parent
    if spec.weights_url:
        spec = replace(spec, weights=str(fetch_weights(spec.weights_url, folder / "initial-weights")))
    os.environ |= run_environment(spec, folder) | {"DLMESH_PARAMETERS": str(_write_parameters(spec, folder))}
    results = _make_results(folder, train_dir)
    is_first = os.environ.get("RANK", "0") == "0"
    with PrintedProgress.of_this_process() if is_first else contextlib.nullcontext():
        if spec.command:
            run_command(spec.command, spec.code)
        else:
            framework.train(spec)
    if is_first:
        if framework.weight_file(train_dir) is None and framework.weight_file(results):
            # A program that knows $RESULT_DIR/model only.
            for path in results.iterdir():
                if not path.is_symlink():
                    shutil.move(path, train_dir / path.name)
        if framework.weight_file(train_dir) is None:
            started = " ".join(spec.command) or spec.program
            sys.exit(f"{started} ended with code 0 but wrote no weights into --train_dir ($DLMESH_TRAIN_DIR)")


def run_environment(spec: TrainingSpec, folder: Path) -> dict[str, str]:
    """What a program finds in its environment; `folder` is that of the run."""
    data = Path(spec.data["train"]).parent
    environment = program_environment(folder, folder, data, spec.code, spec.framework) | alone_in_a_gang()
    environment |= {
        "DLI_IS_ELASTIC": "true" if spec.max_workers else "false",
        "DLMESH_TRAIN_DIR": spec.train_dir,
        "DLMESH_SYNC_MODE": spec.sync_mode,
    }
    if spec.max_workers:
        environment["DLMESH_MAX_WORKERS"] = str(spec.max_workers)
    if spec.weights:
        environment["RESUME_WEIGHT_PATH"] = spec.weights
    return environment


def _make_results(folder: Path, train_dir: Path) -> Path:
    """$RESULT_DIR/model, whose `train` is where the weights are kept."""
    results = folder / "model"
    results.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (results / "train").symlink_to(Path("..", train_dir.name), target_is_directory=True)
    return results


def _write_parameters(spec: TrainingSpec, folder: Path) -> Path:
    # Every rank writes the same content under a name of its own: no rank waits for another.
    (folder / "log").mkdir(exist_ok=True)
    file = folder / f"parameters-{os.environ.get('RANK', '0')}.json"
    file.write_text(json.dumps({"data": spec.data, **spec.parameters}), encoding="utf-8")
    return file


if __name__ == "__main__":
    main(sys.argv[1])
    end_process()
