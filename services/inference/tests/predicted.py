"""What a batch prediction makes of a folder, by the worker in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference_service.domain.predictions import Sample
from inference_service.storage.specs import RESULT_FILE, PredictionSpec, write_manifest
from inference_service.worker.predict import predict
from triton_fixtures import ServedHome


def predicted(
    triton: ServedHome, name: str, source: Path, folder: Path, names: list[str] | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report and the rows of results; of all that `source` holds, or of the files called `names` in it."""
    folder.mkdir()
    spec = PredictionSpec(
        model_name=name,
        model_version=1,
        bundle=str(triton.home / "inference" / "repository" / name / "1" / "bundle"),
        address_file=str(triton.address_file),
        input_dir=str(source),
        roots=(str(source.resolve()),),
        manifest=str(folder / "manifest.jsonl"),
        output_dir=str(folder / "output"),
        threshold=0.0,
        max_image_bytes=1 << 20,
    )
    if names is not None:
        write_manifest(Path(spec.manifest), [Sample(each, each) for each in names])
    report = predict(spec, lambda *_: None)
    lines = (folder / "output" / RESULT_FILE).read_text().splitlines()
    return report, [json.loads(line) for line in lines]
