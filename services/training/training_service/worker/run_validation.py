"""`python -m training_service.worker.run_validation SPEC.json`: the metrics of trained weights on labelled data."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

from dlmesh_sdk.program_environment import program_environment
from workerkit import Reporter
from workerkit.program import end_process, start_apart

from training_service.domain.specs import ValidationSpec
from training_service.frameworks.registry import framework_named
from training_service.worker.result_metrics import measure
from training_service.worker.split import dataset_labels, sample_names

OUTPUT_FILE = "validation.json"


def main(spec_file: str) -> None:
    """Run the model's inference on labelled data and report the metrics as the job's result.

    The process ends with EX_DATAERR, and the job's result says why, when the program fails or its result cannot be
    measured: that would be so again.
    """
    spec = ValidationSpec.read(spec_file)
    output = Path(spec.output_dir)
    # What an attempt before this one left behind is not the result of this one.
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    os.environ |= run_environment(spec)
    # The program has a process of its own: whatever it does to its interpreter, threads or memory, this one measures.
    # It is started first, since a fork wants no threads, which the reporter has.
    program = start_apart(lambda: framework_named(spec.framework).infer(spec, OUTPUT_FILE))
    reporter = Reporter.from_environment()
    reporter.progress(0, 1, "inference")
    code = program.wait()
    if code < 0:
        # As if this process had been ended: the machine's troubles are worth another attempt.
        with contextlib.suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    if code:
        _refuse(reporter, f"inference.py exited with code {code}")
    try:
        values = measure(
            output / OUTPUT_FILE,
            spec.metrics,
            dataset_labels(Path(spec.label_file)),
            spec.threshold,
            sample_names(Path(spec.input_dir), spec.dataset_type),
        )
    except ValueError as error:
        _refuse(reporter, f"the result of inference.py cannot be measured: {error}")
    reporter.progress(1, 1, "inference")
    reporter.result({"pairs": [{"name": name, "value": value} for name, value in values.items()]})
    reporter.close()


def run_environment(spec: ValidationSpec) -> dict[str, str]:
    """What inference.py finds in its environment: the data, and the parameters of the training."""
    output = Path(spec.output_dir)
    data = Path(spec.input_dir).parent
    environment = program_environment(output.parent, output, data, spec.code, spec.framework)
    parameters = Path(spec.model).parent / "parameters-0.json"
    return environment | ({"DLMESH_PARAMETERS": str(parameters)} if parameters.is_file() else {})


def _refuse(reporter: Reporter, reason: str) -> NoReturn:
    # Where the program wrote nothing to stderr, people are shown the last lines of stdout.
    print(reason, flush=True)
    reporter.result({"refused": reason})
    reporter.close()
    sys.exit(os.EX_DATAERR)


if __name__ == "__main__":
    main(sys.argv[1])
    end_process()
