"""Result files that are wrong or hostile, and the process that inference.py runs in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import inference_helper
import lmdb
import numpy as np
import pytest
import torch
from recordkit.datum import encode_datum
from recordkit.example import ImageExample
from recordkit.record_names import record_names
from recordkit.tfrecord import frame
from training_service.domain.specs import ValidationSpec
from training_service.worker import result_file
from training_service.worker.result_metrics import measure
from training_service.worker.split import dataset_labels, sample_names

REPOSITORY = Path(__file__).parents[3]
LABELS = ["cat", "dog", "horse"]
NAMES = ["a", "b", "c"]
METRICS = {"classification": ["Top1", "ConfusionMatrix"], "detection": ["IoU", "mAP"], "vector": ["MAE"]}


def document(kind: str = "classification") -> dict[str, Any]:
    """A right result of three samples."""
    if kind == "detection":
        found, truth = [("dog", 0.5, (0, 0, 2, 2))], [("dog", (0, 0, 2, 2))]
        return inference_helper.getObjectDetectionResult(NAMES, [found] * 3, LABELS, [truth] * 3)
    if kind == "vector":
        rows = [{"sampleId": name, "vector": [1.0, 2.0]} for name in NAMES]
        return {
            "type": kind,
            "result": rows,
            "samples": [{"sampleId": name, "groundTruth": [1.0, 2.0]} for name in NAMES],
        }
    return inference_helper.getClassificationResult(NAMES, [[0.5, 0.3, 0.2]] * 3, LABELS, [0, 1, 2])


def written(folder: Path, content: Any) -> Path:
    file = folder / "validation.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("kind", METRICS)
def test_a_right_result_is_measured(tmp_path: Path, kind: str) -> None:
    values = measure(written(tmp_path, document(kind)), METRICS[kind], LABELS, 0.0, NAMES)
    assert list(values) == METRICS[kind]


CHANGES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("classification", lambda d: d["result"].pop(), ""),
    ("classification", lambda d: d["result"][0].update(prob=float("nan")), "sample 'a': prob nan is no finite number"),
    ("classification", lambda d: d["result"][0].update(prob=float("inf")), "prob inf"),
    ("classification", lambda d: d["result"][0].update(prob=10**400), "prob 1000"),
    ("classification", lambda d: d["result"][0].update(prob="0.5"), "prob 0.5 is no finite"),
    ("classification", lambda d: d["result"][0].update(prob=None), "prob None"),
    ("classification", lambda d: d["result"][0].pop("prob"), "not a result file"),
    ("classification", lambda d: d["result"][0].update(label="cow"), "does not have: 'cow'; it has 'cat', 'dog'"),
    ("classification", lambda d: d["result"][0].update(label=["cow"]), "label .'cow'. is no text"),
    ("classification", lambda d: d["samples"][0].update(groundTruth="7"), "does not have: '7'"),
    ("classification", lambda d: d["samples"][0].update(groundTruth=None), "label None is no text"),
    ("classification", lambda d: d["samples"].append(d["samples"][0]), "more than once: 'a'"),
    ("classification", lambda d: d["result"][0].update(sampleId="z"), "predictions of what is no sample: 'z'"),
    ("classification", lambda d: d["result"][0].update(sampleId=1), "has no sampleId"),
    ("classification", lambda d: d.update(result={}), "result is no list"),
    ("classification", lambda d: d.update(type=["classification"]), "is not known; allowed: classification"),
    ("detection", lambda d: d["result"][0].update(bbox="0,0,nan,1"), "bbox: '0,0,nan,1' is not xmin"),
    ("detection", lambda d: d["result"][0].update(bbox="5,0,1,1"), "bbox: '5,0,1,1' is not xmin"),
    ("detection", lambda d: d["result"][0].update(bbox=[0, 0, 1, 1]), "not a result file"),
    ("detection", lambda d: d["result"][0].update(label="cow"), "does not have: 'cow'"),
    ("detection", lambda d: d["samples"][0].update(groundTruth="dog"), "groundTruth is no list of objects"),
    ("vector", lambda d: d["result"].pop(), "samples without a prediction: 'c'"),
    ("vector", lambda d: d["result"][1].update(vector=[1.0]), "sample 'b': vectors of 2 and 1 numbers"),
    ("vector", lambda d: d["result"][1].update(vector=[1.0, float("nan")]), "sample 'b': vector has nan"),
    ("vector", lambda d: d["samples"][1].update(groundTruth=[1.0, 1e300]), "groundTruth has 1e.300"),
    ("vector", lambda d: d["samples"][1].update(groundTruth=[]), "groundTruth is no list of numbers"),
]


@pytest.mark.parametrize(("kind", "change", "message"), CHANGES)
def test_one_thing_wrong_is_named(tmp_path: Path, kind: str, change: Callable[[Any], Any], message: str) -> None:
    content = document(kind)
    change(content)
    file = written(tmp_path, content)
    if not message:
        measure(file, METRICS[kind], LABELS, 0.0, NAMES)
        return
    with pytest.raises(ValueError, match=message):
        measure(file, METRICS[kind], LABELS, 0.0, NAMES)


def test_samples_must_be_those_of_the_split(tmp_path: Path) -> None:
    file = written(tmp_path, document())
    with pytest.raises(ValueError, match="not those of the split; missing: 'd'; not there: 'a'"):
        measure(file, ["Top1"], LABELS, 0.0, ["b", "c", "d"])
    many = [str(number) for number in range(20)]
    with pytest.raises(ValueError, match=r"missing: '0', '1', '10', '11', '12' \.\.\. \(20\)$"):
        measure(file, ["Top1"], LABELS, 0.0, [*NAMES, *many])
    # A program that calls all samples as it likes, as those of the original platform do: their number is all we know.
    assert measure(file, ["Top1"], LABELS, 0.0, ["x", "y", "z"]) == {"Top1": "0.333333"}
    with pytest.raises(ValueError, match="3 samples; the split has 2"):
        measure(file, ["Top1"], LABELS, 0.0, ["x", "y"])


def test_labels_may_be_indices(tmp_path: Path) -> None:
    content = inference_helper.getClassificationResult(NAMES, [[0.5, 0.3, 0.2]] * 3, None, [0, 1, 2])
    matrix = json.loads(measure(written(tmp_path, content), ["ConfusionMatrix"], LABELS, 0.0)["ConfusionMatrix"])
    assert matrix == {"labels": LABELS, "matrix": [[1, 0, 0], [1, 0, 0], [1, 0, 0]]}
    # Names that look like indices are names.
    turned = measure(written(tmp_path, content), ["ConfusionMatrix"], ["2", "1", "0"], 0.0)["ConfusionMatrix"]
    assert json.loads(turned) == {"labels": ["2", "1", "0"], "matrix": [[0, 0, 1], [0, 0, 1], [0, 0, 1]]}
    # Of a dataset without labels those that occur are listed.
    assert json.loads(measure(written(tmp_path, content), ["ConfusionMatrix"], [], 0.0)["ConfusionMatrix"]) == {
        "labels": ["0", "1", "2"],
        "matrix": [[1, 0, 0], [1, 0, 0], [1, 0, 0]],
    }


def test_equally_probable_labels_stay_in_their_order(tmp_path: Path) -> None:
    content = inference_helper.getClassificationResult(["a"], [[0.25, 0.5, 0.5]], ["z", "y", "x"], ["y"])
    assert measure(written(tmp_path, content), ["Top1"], ["z", "y", "x"], 0.0) == {"Top1": "1"}


def test_scores_that_are_no_probabilities_count_as_they_are(tmp_path: Path) -> None:
    scores = [[-1.0, -7.5, -2.0], [-9.0, 12.5, 3.0]]
    content = inference_helper.getClassificationResult(["a", "b"], scores, LABELS, ["cat", "cow"])
    assert len(content["result"]) == 6
    content["samples"][1]["groundTruth"] = "dog"
    assert measure(written(tmp_path, content), ["Top1"], LABELS, 0.0) == {"Top1": "1"}
    assert measure(written(tmp_path, content), ["Top1"], LABELS, 0.1) == {"Top1": "0.5"}


def test_a_matrix_has_its_limit(tmp_path: Path) -> None:
    labels = [str(number) for number in range(998)]
    with pytest.raises(ValueError, match="ConfusionMatrix: 1001 labels, allowed are 1000"):
        measure(written(tmp_path, document()), ["ConfusionMatrix"], [*LABELS, *labels], 0.0)


def hostile(folder: Path, kind: str) -> Path:
    file = folder / "output" / "validation.json"
    file.parent.mkdir()
    elsewhere = written(folder, document())
    match kind:
        case "link":
            file.symlink_to(elsewhere)
        case "second name":
            file.hardlink_to(elsewhere)
        case "folder link":
            file.parent.rmdir()
            file.parent.symlink_to(folder)
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "gigabytes":
            with file.open("wb") as stream:
                stream.truncate(5 << 30)
        case "deep":
            file.write_text("[" * 200_000)
        case "bytes":
            file.write_bytes(b"\xff\xfe\x00")
        case "half":
            file.write_text(json.dumps(document())[:-20])
        case "digits":
            file.write_text("9" * 10_000)
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("none", "ended without writing validation.json"),
        ("link", "plain file"),
        ("second name", "is a link or no file"),
        ("folder link", "plain file"),
        ("folder", "is a link or no file"),
        ("pipe", "is a link or no file"),
        ("gigabytes", "has 5368709120 bytes, allowed are 134217728"),
        ("deep", "nested too deeply"),
        ("bytes", "not JSON"),
        ("half", "not JSON"),
        ("digits", "not JSON"),
    ],
)
def test_what_is_no_plain_result_is_refused(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        result_file.read_result(hostile(tmp_path, kind))


def test_names_of_a_split(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "lmdb")) as environment, environment.begin(write=True) as transaction:
        for key in (b"00000000_\xe4.png", b"00000001_b.png"):
            transaction.put(key, b"")
    assert sample_names(tmp_path / "lmdb") == ["00000000_\udce4.png", "00000001_b.png"]
    (tmp_path / "tfrecords").mkdir()
    records = [ImageExample(b"x", "png", 1, 1, 1, 0, filename=name).serialize() for name in ("a", "", "a", "b", "")]
    (tmp_path / "tfrecords" / "one.tfrecord").write_bytes(b"".join(map(frame, records)))
    assert record_names(tmp_path / "tfrecords") == ["a", "#1", "a#2", "b", "#4"]
    (tmp_path / "detection").mkdir()
    (tmp_path / "detection" / "annotations.jsonl").write_text('{"name": "x.jpg"}\n{"name": "ä.jpg"}\n')
    assert sample_names(tmp_path / "detection") == ["x.jpg", "ä.jpg"]
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "data.csv").write_bytes(b'a,b\n1,2\n"x\ny",3\n%s,4\n' % (b"z" * 200_000))
    assert sample_names(tmp_path / "table") == ["0", "1", "2"]
    # What the datasets service says of a split.
    assert sample_names(tmp_path / "table" / "data.csv") == ["0", "1", "2"]
    (tmp_path / "other").mkdir()
    assert sample_names(tmp_path / "other") is None
    # Whatever lies there.
    assert sample_names(tmp_path / "tfrecords", "Other") is None
    assert dataset_labels(tmp_path / "labels.txt") == []
    (tmp_path / "labels.txt").write_text("cat\n\n dog \n")
    assert dataset_labels(tmp_path / "labels.txt") == ["cat", "dog"]


PROGRAM = """
import argparse, json, os, sys
parser = argparse.ArgumentParser()
for option in ("output_dir", "output_file", "input_dir"):
    parser.add_argument("--" + option)
options, _ = parser.parse_known_args()
def write(content):
    with open(os.path.join(options.output_dir, options.output_file), "w") as file:
        file.write(content)
"""


def validated(
    folder: Path, program: str, records: Sequence[bytes] = (b"",) * 3
) -> tuple[subprocess.CompletedProcess[str], Any]:
    """How the worker ended on a split with the records a, b and c, and the result that it reported."""
    for name in ("code", "job", "data", "checkpoints"):
        (folder / name).mkdir(exist_ok=True)
    with lmdb.open(str(folder / "data/val")) as environment, environment.begin(write=True) as transaction:
        for name, record in zip(NAMES, records, strict=True):
            transaction.put(name.encode(), record)
    (folder / "data/labels.txt").write_text("cat\ndog\nhorse\n")
    (folder / "code/inference.py").write_text(program)
    spec = ValidationSpec(
        code=str(folder / "code"),
        model=str(folder / "checkpoints"),
        input_dir=str(folder / "data/val"),
        output_dir=str(folder / "output"),
        label_file=str(folder / "data/labels.txt"),
        threshold=0.0,
        metrics=["Top1"],
    )
    spec.write(folder / "spec.json")
    packages = [
        "libs/sdk",
        "libs/workerkit",
        "libs/servicekit",
        "libs/contracts",
        "libs/recordkit",
        "services/training",
    ]
    environment_ = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY / package) for package in packages),
        "DLMESH_JOB_ID": "j1",
        "DLMESH_JOB_TOKEN": "t",
        "DLMESH_JOB_DIR": str(folder / "job"),
    }
    command = [sys.executable, "-m", "training_service.worker.run_validation", str(folder / "spec.json")]
    done = subprocess.run(command, env=environment_, text=True, capture_output=True, timeout=60, check=False)
    report = json.loads((folder / "job/report.json").read_text())
    return done, report.get("result")


def test_the_worker_measures_what_the_program_wrote(tmp_path: Path) -> None:
    # Its own reader holds the records open, and it spoils its interpreter before it leaves without saying goodbye.
    program = f"""
import lmdb
held = lmdb.open(options.input_dir, readonly=True, lock=False)
assert os.environ["DATA_DIR"] == os.path.dirname(options.input_dir)
write({json.dumps(document())!r})
json.loads = None
os._exit(0)
"""
    done, result = validated(tmp_path, PROGRAM + program)
    assert done.returncode == 0, done.stderr
    assert result == {"pairs": [{"name": "Top1", "value": "0.333333"}]}


@pytest.mark.parametrize(
    ("program", "reason", "words"),
    [
        ("raise RuntimeError('broken on purpose')", "inference.py exited with code 1", "RuntimeError: broken on"),
        ("sys.exit('no weights')", "inference.py exited with code 1", "no weights"),
        ("sys.exit(3)", "inference.py exited with code 3", ""),
        ("print('no such class'); sys.exit(3)", "inference.py exited with code 3", "no such class"),
        ("os._exit(4)", "inference.py exited with code 4", ""),
        ("print('done')", "cannot be measured: inference.py ended without writing validation.json", ""),
        ("write('junk')", "cannot be measured: validation.json is not JSON", ""),
    ],
)
def test_a_program_that_fails_is_refused(tmp_path: Path, program: str, reason: str, words: str) -> None:
    done, result = validated(tmp_path, PROGRAM + program)
    assert done.returncode == os.EX_DATAERR
    assert reason in result["refused"]
    # The status shows the last lines of stderr, of stdout where there are none.
    assert done.stdout.endswith(f"{result['refused']}\n")
    assert words in (done.stderr or done.stdout)
    # Of the platform's own frames nothing is shown.
    assert "run_validation" not in done.stderr


def test_a_signal_ends_both(tmp_path: Path) -> None:
    done, result = validated(tmp_path, PROGRAM + "import signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    assert result is None


MODEL = """
import numpy as np
import torch

def preprocess(image):
    return np.asarray(image, np.float32)[None] / 255

def build_model():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
"""


def test_the_example_in_the_documentation_runs(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/validation.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for name in ("code", "checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "code/model.py").write_text(MODEL)
    # The first three of four pixels are the scores.
    weights = {"1.weight": torch.eye(3, 4), "1.bias": torch.zeros(3)}
    torch.save(weights, tmp_path / "checkpoints/model_epoch_final.pth")
    pixels = np.array([[9, 0, 0, 0], [9, 0, 0, 0], [0, 0, 9, 0]], np.uint8).reshape(3, 1, 2, 2)
    done, result = validated(tmp_path, example, [encode_datum(image, label) for label, image in enumerate(pixels)])
    assert done.returncode == 0, done.stderr
    assert result == {"pairs": [{"name": "Top1", "value": "0.666667"}]}
    # Every example of a result file is one.
    files = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    assert [file["type"] for file in files] == list(METRICS)
    for file in files:
        measure(written(tmp_path, file), METRICS[file["type"]], [], 0.0)
