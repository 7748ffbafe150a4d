"""The programs of docs/programs.md, run as it says they can be without the platform."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image
from recordkit.datum import encode_datum
from sklearn.datasets import load_digits

PAGE = (Path(__file__).parents[3] / "docs" / "programs.md").read_text(encoding="utf-8")


def program(name: str) -> str:
    (found,) = re.findall(rf"```python\n(# {re.escape(name)}\n.*?)```", PAGE, re.DOTALL)
    return str(found)


@pytest.mark.slow
def test_they_run_off_the_platform(tmp_path: Path) -> None:
    digits = load_digits()
    for split, indices in {"train": range(1500), "test": range(1500, 1797)}.items():
        (tmp_path / "digits" / split).mkdir(parents=True)
        with lmdb.open(str(tmp_path / "digits" / split), map_size=1 << 26) as environment:
            with environment.begin(write=True) as writer:
                for index in indices:
                    pixels = (digits.images[index] * 15.9).astype(np.uint8)
                    writer.put(b"%08d" % index, encode_datum(pixels[None], int(digits.target[index])))
    (tmp_path / "digits" / "pictures").mkdir()
    for index in (1500, 1501, 1502):
        pixels = Image.fromarray((digits.images[index] * 15.9).astype(np.uint8))
        pixels.save(tmp_path / "digits" / "pictures" / f"{index:08d}.png")
    (tmp_path / "digits" / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    for name in ("main.py", "inference.py", "elastic-main.py"):
        (tmp_path / name).write_text(program(name))
    (parameters,) = re.findall(r"run\.json <<'EOF'\n(.*?)EOF", PAGE, re.DOTALL)
    (tmp_path / "run.json").write_text(parameters)
    (asks,) = re.findall(r"^python (inference\.py .*?)\nLOG_DIR", PAGE, re.DOTALL | re.MULTILINE)

    # In one interpreter: each would import torch.
    validation = asks.replace("\\\n", " ").split()
    prediction = asks.replace("\\\n", " ").replace("/test", "/pictures").replace("result", "predicted")
    prediction = prediction.replace("--validate true", "").split()
    commands = [["main.py", "--train_dir", "out"], validation, prediction, ["elastic-main.py"]]
    run_all = (
        "import json, runpy, sys\nsys.path.insert(0, '')\n"
        "for sys.argv in json.loads(sys.argv[1]):\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DLMESH")}
    done = subprocess.run(
        [sys.executable, "-c", run_all, json.dumps(commands)],
        cwd=tmp_path,
        env=environment | {"DLMESH_PARAMETERS": "run.json", "LOG_DIR": "log", "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"Total iterations: 72", "Total iterations: 141"} <= set(done.stdout.splitlines())
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    best = {row["sampleId"]: row["label"] for row in reversed(result["result"])}
    right = [best[row["sampleId"]] == row["groundTruth"] for row in result["samples"]]
    assert len(right) == 297
    assert np.mean(right) > 0.8
    predicted = json.loads((tmp_path / "out" / "predicted.json").read_text())["result"]
    assert len(predicted) == 15
    asked = [row | {"sampleId": row["sampleId"] + ".png"} for row in result["result"]][: len(predicted)]
    for row, other in zip(predicted, asked, strict=True):
        assert (row["sampleId"], row["label"]) == (other["sampleId"], other["label"])
        assert row["prob"] == pytest.approx(other["prob"], rel=1e-4)
    rows = [json.loads(line) for line in (tmp_path / "log" / "evaluation-metrics.txt").read_text().splitlines()]
    tests = [float(row["values"]["accuracy"]["value"]) for row in rows if row["grouplabel"] == "test"]
    assert len(tests) == 3
    assert tests[-1] > 0.8
    assert (tmp_path / "model" / "train" / "model_epoch_3_optimizer_state.pth").is_file()
