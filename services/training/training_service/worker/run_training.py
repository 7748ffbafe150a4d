"""`python -m training_service.worker.run_training SPEC.json`: one rank of a training."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from training_service.domain.specs import TrainingSpec
from training_service.worker.program import end_process, run_program

FINAL_WEIGHTS = "model_epoch_final.pth"


def main(spec_file: str) -> None:
    """Run the model's main.py; SystemExit with a message when it ends without having written its final weights."""
    spec = TrainingSpec.read(spec_file)
    train_dir = Path(spec.train_dir)
    train_dir.mkdir(parents=True, exist_ok=True)
    is_first = os.environ.get("RANK", "0") == "0"
    os.environ |= {
        "DLMESH_PARAMETERS": str(_write_parameters(spec, train_dir.parent)),
        "DATA_DIR": str(Path(spec.data["train"]).parent),
        "RESULT_DIR": str(train_dir.parent),
        "LOG_DIR": str(train_dir.parent / "log"),
    }
    run_program(spec.code, "main.py", ["--train_dir", spec.train_dir, "--weights", spec.weights])
    if is_first and not (train_dir / FINAL_WEIGHTS).is_file():
        sys.exit(f"main.py ended without writing {FINAL_WEIGHTS} into --train_dir")


def _write_parameters(spec: TrainingSpec, folder: Path) -> Path:
    # Every rank writes the same content under a name of its own: no rank waits for another.
    (folder / "log").mkdir(exist_ok=True)
    file = folder / f"parameters-{os.environ.get('RANK', '0')}.json"
    file.write_text(json.dumps({"data": spec.data, **spec.parameters}), encoding="utf-8")
    return file


if __name__ == "__main__":
    main(sys.argv[1])
    end_process()
