"""`python -m training_service.worker.run_validation SPEC.json`: the metrics of trained weights on the test split."""

from __future__ import annotations

import sys
from pathlib import Path

from training_service.domain.specs import ValidationSpec
from training_service.frameworks.registry import framework_named
from training_service.worker.program import end_process
from training_service.worker.result_metrics import measure

OUTPUT_FILE = "validation.json"


def main(spec_file: str) -> None:
    """Run the model's inference on labelled data and report the metrics as the job's result."""
    from workerkit import Reporter

    spec = ValidationSpec.read(spec_file)
    reporter = Reporter.from_environment()
    reporter.progress(0, 1, "inference")
    output = Path(spec.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    framework_named(spec.framework).infer(spec, OUTPUT_FILE)
    labels = Path(spec.label_file)
    try:
        values = measure(
            output / OUTPUT_FILE,
            spec.metrics,
            labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else [],
            spec.threshold,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"the result of inference.py cannot be measured: {error}")
    pairs = [{"name": name, "value": value} for name, value in values.items()]
    reporter.progress(1, 1, "inference")
    reporter.result({"pairs": pairs})
    reporter.close()


if __name__ == "__main__":
    main(sys.argv[1])
    end_process()
