"""`python -m scheduling_service.worker.run_exec SPEC.json`: one rank of an exec task."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from dlmesh_sdk.program_environment import alone_in_a_gang, program_environment
from workerkit import PrintedProgress
from workerkit.command import run_command
from workerkit.program import end_process

from scheduling_service.domain.exec_spec import ExecSpec
from scheduling_service.exec_frameworks.registry import make_framework


def main(spec_file: str) -> None:
    """Run the program, or the command; SystemExit with its code when it fails."""
    spec = ExecSpec.read(spec_file)
    is_first = os.environ.get("RANK", "0") == "0"
    if is_first and os.environ.get("DLMESH_JOB_ATTEMPT", "1") == "1":
        for warning in spec.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    os.environ |= run_environment(spec)
    # Curves of tasks are in their own files; the service of trainings knows nothing of them.
    os.environ.pop("DLMESH_TRAINING_ADDRESS", None)
    with PrintedProgress.of_this_process() if is_first else contextlib.nullcontext():
        if spec.command:
            run_command(spec.command, spec.code, named="--user-cmd")
        else:
            make_framework(spec.framework).run(spec)


def run_environment(spec: ExecSpec) -> dict[str, str]:
    """What a program finds in its environment."""
    folder = Path(spec.folder)
    environment = program_environment(folder, spec.results, Path(spec.data), spec.code, spec.backend)
    environment |= alone_in_a_gang()
    environment |= {
        "LOG_DIR": str(spec.log),
        "DLI_EXECID": spec.id,
        "TRAINING_ID": spec.id,
        "DLI_IS_ELASTIC": "true" if spec.max_workers else "false",
        "WMLA_WORKER_NDEVICE": str(spec.devices_per_worker),
    }
    if spec.datastore:
        environment["DLI_CS_DATASTORE_META"] = spec.datastore
    if spec.log_level:
        environment["DLI_LOGGER_LEVEL"] = spec.log_level
    if spec.max_workers:
        environment["DLMESH_MAX_WORKERS"] = str(spec.max_workers)
    # What the user says wins.
    return environment | dict(spec.environment)


if __name__ == "__main__":
    main(sys.argv[1])
    end_process()
