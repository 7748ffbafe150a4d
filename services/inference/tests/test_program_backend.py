"""Programs that have only an inference.py: what is exported of them, and how they answer, fail and are kept apart."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import psutil
import pytest
from inference_service import backends
from inference_service.backends.base import ExportError, Source
from inference_service.backends.program import ProgramBackend, TensorFlowProgramBackend
from inference_service.worker.predict import summary
from inference_service.worker.result_files import ResultFiles
from PIL import Image
from recordkit.datum import encode_datum
from recordkit.example import ImageExample
from recordkit.tfrecord import frame
from servicekit.errors import ServiceError
from workerkit.confinement.hiding import supported_abi

# As Triton's stub finds them: beside each other.
sys.path.insert(0, str(Path(backends.__file__).parent))

from program_results import JunkError, read_results  # type: ignore[import-not-found]
from program_runs import FailedError, Program, TooLongError  # type: ignore[import-not-found]

HEAD = """
import argparse, json, os, sys
from PIL import Image
parser = argparse.ArgumentParser()
for name in ("model", "input_dir", "output_dir", "output_file", "prob_thresh", "validate", "label_file"):
    parser.add_argument("--" + name, default="")
args = parser.parse_args()
names = sorted(os.listdir(args.input_dir))
result = os.path.join(args.output_dir, args.output_file)
def write(**document):
    with open(result, "w") as file:
        json.dump(document, file)
"""
# How bright a picture is.
BRIGHTNESS = """
from brightness import brightness
import inference_helper
rows = [(value, 1 - value) for value in (brightness(os.path.join(args.input_dir, name)) for name in names)]
inference_helper.writeClassificationResult2(result, names, rows, label_file=args.label_file)
"""
MODULE = """
from PIL import Image, ImageStat
def brightness(file):
    with Image.open(file) as image:
        return ImageStat.Stat(image.convert("L")).mean[0] / 255
"""

Make = Callable[..., Program]


def picture(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (8, 8), shade).save(content, "PNG")
    return content.getvalue()


def until_true(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def write_training(home: Path, program: str = HEAD + BRIGHTNESS) -> Source:
    """A training as the training service leaves one, with its dataset."""
    run, data = home / "trainings" / "t1", home / "datasets" / "d1"
    code, checkpoints = run / "code", run / "checkpoints"
    for folder in (code, checkpoints / "steps" / "step-0000000001", data / "train"):
        folder.mkdir(parents=True, exist_ok=True)
    (code / "inference.py").write_text(program)
    (code / "brightness.py").write_text(MODULE)
    for name in ("model_epoch_1.pth", "model_epoch_1_optimizer_state.pth", "model_epoch_final.pth", "words.txt"):
        (checkpoints / name).write_text(name)
    (data / "labels.txt").write_text("light\ndark\n")
    (run / "parameters-0.json").write_text(json.dumps({"data": {"train": str(data / "train")}, "seed": 7}))
    return Source("mine-first", code, checkpoints)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A program that was exported; its processes end with the test."""
    programs = []

    def make_program(body: str, seconds: float = 300.0) -> Program:
        source = write_training(tmp_path, HEAD + body)
        entry = tmp_path / "inference" / "repository" / source.name
        entry.mkdir(parents=True)
        ProgramBackend().write(source, entry)
        program = Program(entry / "1" / "bundle", source.name, "1", seconds)
        programs.append(program)
        return program

    yield make_program
    for program in programs:
        program.close()
        assert not program.work.exists()


def test_what_is_exported(tmp_path: Path) -> None:
    source = write_training(tmp_path)
    entry = tmp_path / "entry"
    entry.mkdir()
    TensorFlowProgramBackend().write(source, entry)
    bundle = entry / "1" / "bundle"
    files = {str(file.relative_to(bundle)) for file in bundle.rglob("*") if file.is_file()}
    assert files == {
        *("code/inference.py", "code/brightness.py", "checkpoints/model_epoch_final.pth", "checkpoints/words.txt"),
        *("labels.txt", "parameters.json", "program.json"),
    }
    assert json.loads((bundle / "program.json").read_text()) == {
        **{"framework": "TensorFlow", "labels": ["light", "dark"]},
        "records": None,
    }
    config = (entry / "config.pbtxt").read_text()
    assert '"ITEM"' in config
    assert "INPUT__0" not in config
    assert {file.name for file in (entry / "1").glob("*.py")} == {
        *("model.py", "model_room.py", "bytes_tensors.py", "program_host.py", "program_results.py", "program_runs.py"),
        "program_records.py",
    }


def test_labels_and_examples_come_from_datasets_only(tmp_path: Path) -> None:
    source = write_training(tmp_path)
    elsewhere = tmp_path / "elsewhere" / "train"
    elsewhere.mkdir(parents=True)
    (elsewhere.parent / "labels.txt").write_text("secret\n")
    (source.checkpoints.parent / "parameters-0.json").write_text(json.dumps({"data": {"train": str(elsewhere)}}))
    entry = tmp_path / "entry"
    entry.mkdir()
    ProgramBackend().write(source, entry)
    assert not (entry / "1" / "bundle" / "labels.txt").exists()


def link_in_code(source: Source) -> None:
    (source.code / "more.py").symlink_to("/etc/passwd")


def pipe_in_code(source: Source) -> None:
    os.mkfifo(source.code / "more.py")


def no_program(source: Source) -> None:
    (source.code / "inference.py").unlink()


def nothing_left(source: Source) -> None:
    for file in source.checkpoints.glob("*.*"):
        file.unlink()


def a_table(source: Source) -> None:
    folder = json.loads((source.checkpoints.parent / "parameters-0.json").read_text())["data"]["train"]
    Path(folder, "data.csv").write_text("a,b\n1,2\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (link_in_code, "without links"),
        (pipe_in_code, "without links"),
        (no_program, r"no inference\.py"),
        (nothing_left, "no weights in --train_dir"),
        (a_table, "table"),
    ],
)
def test_what_cannot_be_exported_is_said(tmp_path: Path, spoil: Callable[[Source], None], words: str) -> None:
    source = write_training(tmp_path)
    spoil(source)
    entry = tmp_path / "entry"
    entry.mkdir()
    with pytest.raises((ExportError, ServiceError), match=words):
        ProgramBackend().write(source, entry)


def test_links_among_checkpoints_are_left_out_but_for_those_to_others(tmp_path: Path) -> None:
    source = write_training(tmp_path)
    (source.checkpoints / "more.pth").symlink_to("/etc/passwd")
    (source.checkpoints / "lost.pth").symlink_to("nowhere.pth")
    (source.checkpoints / "model_epoch_final.pth").unlink()
    (source.checkpoints / "model_epoch_final.pth").symlink_to("model_epoch_1.pth")
    entry = tmp_path / "entry"
    entry.mkdir()
    ProgramBackend().write(source, entry)
    copied = entry / "1" / "bundle" / "checkpoints"
    assert {file.name for file in copied.iterdir()} == {"model_epoch_final.pth", "words.txt"}
    assert not (copied / "model_epoch_final.pth").is_symlink()
    assert (copied / "model_epoch_final.pth").read_text() == "model_epoch_1.pth"


def test_results_are_those_of_the_items_and_what_is_no_picture_costs_nobody(make: Make) -> None:
    program = make(BRIGHTNESS)
    results = program.run([picture(255), b"\xff\0", picture(51), picture(102)[:45]])
    assert results[0]["scores"] == [
        {"index": 0, "label": "light", "prob": 1.0},
        {"index": 1, "label": "dark", "prob": 0.0},
    ]
    assert [score["prob"] for score in results[2]["scores"]] == pytest.approx([0.8, 0.2])
    assert [score["label"] for score in results[2]["scores"]] == ["dark", "light"]
    assert "neither a picture" in results[1]["error"]
    assert "cannot be read as a picture" in results[3]["error"]


def test_it_is_asked_again_and_again_without_anything_of_before(make: Make) -> None:
    program = make(BRIGHTNESS + "\nassert len(names) < 3\nopen(args.input_dir + '/../mark', 'x')\nopen('mark', 'a')")
    for shade in (0, 255):
        [result] = program.run([picture(shade)])
        assert result["scores"][0]["prob"] == 1.0
    with pytest.raises(FailedError, match="AssertionError"):
        program.run([picture(shade) for shade in range(3)])
    assert program.run([picture(0)])[0]["scores"][0]["label"] == "dark"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('no such net')", "(?s)ended with code 1.*ValueError: no such net"),
        ("sys.exit(3)", "ended with code 3"),
        ("os.kill(os.getpid(), 11)", "signal 11"),
        ("import not_there", "not_there"),
        ("pass", "no result file"),
        ("open(result, 'w').write('{')", "no JSON"),
        ("write(type='poem', result=[])", "poem"),
        ("write(type='classification', result=[{'sampleId': names[0], 'label': 'x', 'prob': float('nan')}])", "finite"),
        ("write(type='classification', result=[{'sampleId': 'another', 'label': 'x', 'prob': 1}])", "another"),
        ("os.symlink('/etc/passwd', result)", "cannot be read"),
        ("os.mkfifo(result)", "no regular file"),
        ("open(result, 'wb').truncate(2**30)", "more than"),
        ("open(result, 'wb').truncate(2**40)", "signal 25|File too large"),
    ],
)
def test_a_program_that_fails_says_why_and_answers_the_next(make: Make, body: str, words: str) -> None:
    program = make(f"if len(names) == 2:\n    {body}\nelse:" + BRIGHTNESS.replace("\n", "\n    "))
    with pytest.raises(FailedError, match=words):
        program.run([picture(0), picture(1)])
    assert program.run([picture(0)])[0]["scores"][0]["label"] == "dark"


def test_a_program_that_hangs_is_ended_with_all_that_it_started(make: Make) -> None:
    program = make(
        "import subprocess, time\n"
        "if len(names) == 2:\n"
        "    child = subprocess.Popen(['sleep', '3600'], start_new_session=True)\n"
        "    open('pid', 'w').write(str(child.pid))\n"
        "    time.sleep(3600)\n" + BRIGHTNESS,
        seconds=3.0,
    )
    with pytest.raises(TooLongError, match="longer than 3 s"):
        program.run([picture(0), picture(1)])
    assert not psutil.pid_exists(int((program.work / "code" / "pid").read_text()))
    program.seconds = 300.0
    assert program.run([picture(0)])[0]["scores"][0]["label"] == "dark"


def test_a_killed_host_is_started_again(make: Make) -> None:
    program = make(BRIGHTNESS)
    program.run([picture(0)])
    assert program._host is not None
    program._host.kill()
    program._host.wait()
    assert program.run([picture(0)])[0]["scores"][0]["label"] == "dark"


OWNER = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from program_runs import Program
program = Program(pathlib.Path(sys.argv[2]), "owned", "1", 300.0)
program.start()
program.run([pathlib.Path(sys.argv[3]).read_bytes()] * 2)
"""


@pytest.mark.parametrize("killed", ["owner", "host"])
def test_nothing_outlives_a_process_that_is_killed(make: Make, tmp_path: Path, killed: str) -> None:
    program = make(
        "import subprocess, time\n"
        "child = subprocess.Popen(['sh', '-c', 'sleep 3600; true'], start_new_session=True)\n"
        "open('draft', 'w').write(f'{child.pid} {os.getppid()}')\n"
        "os.rename('draft', 'pids')\n"
        "time.sleep(3600)\n"
    )
    (tmp_path / "picture").write_bytes(picture(0))
    arguments = [str(Path(backends.__file__).parent), str(program.bundle), str(tmp_path / "picture")]
    with subprocess.Popen([sys.executable, "-c", OWNER, *arguments], stderr=subprocess.DEVNULL) as owner:
        file = tmp_path / "inference" / "rooms" / f"owned@1@{owner.pid}" / "code" / "pids"
        until_true(file.exists)
        child, host = map(psutil.Process, map(int, file.read_text().split()))
        family = [child, host, *psutil.Process(owner.pid).children(recursive=True), *child.children()]
        (owner if killed == "owner" else host).kill()
        until_true(lambda: not any(process.is_running() for process in family))


@pytest.mark.skipif(not supported_abi(), reason="this kernel has no Landlock")
def test_it_reaches_neither_passwords_nor_others_files(make: Make, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "data").mkdir()
    program = make(
        f"home = {str(tmp_path)!r}\n"
        "if len(names) == 2:\n    open(home + '/secret').read()\n"
        "if len(names) == 3:\n    open(home + '/data/mine', 'w')\n"
        "if len(names) == 4:\n    open(args.model + '/mine', 'w')\n" + BRIGHTNESS
    )
    for count in (2, 3, 4):
        with pytest.raises(FailedError, match="PermissionError"):
            program.run([picture(0)] * count)
    assert program.run([picture(0)])[0]["scores"][0]["label"] == "dark"


LMDB_READER = """
import lmdb
from recordkit.datum import Datum
names, rows = [], []
with lmdb.open(args.input_dir, readonly=True, lock=False).begin() as transaction:
    for key, value in transaction.cursor():
        image = Datum.parse(value).image()
        assert image.size == (8, 6) and image.mode == "RGB"
        names.append(key.decode())
        rows.append((image.getpixel((0, 0))[0] / 255, image.getpixel((0, 0))[2] / 255))
"""
TFRECORD_READER = """
import io
from recordkit.example import ImageExample
from recordkit.record_files import record_files
from recordkit.tfrecord import TFRecordFile
import pathlib
names, rows = [], []
for file in record_files(pathlib.Path(args.input_dir)):
    for record in TFRecordFile(file):
        example = ImageExample.parse(record)
        image = Image.open(io.BytesIO(example.encoded))
        assert image.size == (8, 6) and image.mode == "RGB"
        names.append(example.filename)
        rows.append((image.getpixel((0, 0))[0] / 255, image.getpixel((0, 0))[2] / 255))
assert names
"""
WRITE = """
import inference_helper
inference_helper.writeClassificationResult2(result, names, rows, label_file=args.label_file)
"""


def write_lmdb(folder: Path) -> None:
    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"0", encode_datum(np.zeros((3, 6, 8), np.uint8), 0))


def write_tfrecords(folder: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 6)).save(content, "PNG")
    example = ImageExample(content.getvalue(), "png", 6, 8, 3, 0)
    (folder / "data-00000-of-00001").write_bytes(frame(example.serialize()))


@pytest.mark.parametrize(("write", "reader"), [(write_lmdb, LMDB_READER), (write_tfrecords, TFRECORD_READER)])
def test_programs_that_read_records_only_are_given_records(
    tmp_path: Path, make: Make, write: Callable[[Path], None], reader: str
) -> None:
    data = tmp_path / "datasets" / "d1" / "train"
    data.mkdir(parents=True)
    write(data)
    program = make(reader + WRITE)
    for shade in (51, 102):
        content = io.BytesIO()
        Image.new("RGB", (16, 12), (shade, 0, 255)).save(content, "PNG")
        good, bad = program.run([content.getvalue(), content.getvalue()[:45]])
        assert [(score["label"], score["prob"]) for score in good["scores"]] == [("dark", 1.0), ("light", shade / 255)]
        assert "cannot be read as a picture" in bad["error"]
    assert program._takes_records


def test_programs_that_take_pictures_of_their_size_only_are_given_others_as_records(tmp_path: Path, make: Make) -> None:
    data = tmp_path / "datasets" / "d1" / "train"
    data.mkdir(parents=True)
    write_lmdb(data)
    pictures = """
rows = []
for name in names:
    with Image.open(os.path.join(args.input_dir, name)) as image:
        assert image.size == (8, 6), "of another size"
        rows.append((1.0, 0.0))
"""
    records = textwrap.indent(LMDB_READER, "    ")
    is_records = 'os.path.exists(os.path.join(args.input_dir, "data.mdb"))'
    program = make(f"if {is_records}:{records}else:{textwrap.indent(pictures, '    ')}{WRITE}")

    def ask(width: int, height: int) -> list[float]:
        content = io.BytesIO()
        Image.new("RGB", (width, height), (51, 0, 255)).save(content, "PNG")
        [found] = program.run([content.getvalue()])
        return [score["prob"] for score in found["scores"]]

    assert ask(8, 6) == [1.0, 0.0]
    assert not program._takes_records
    assert ask(16, 12) == [1.0, 0.2]
    assert program._takes_records


def result_file(folder: Path, **document: Any) -> Path:
    file = folder / "result.json"
    file.write_text(json.dumps(document))
    return file


def test_detections_keep_their_boxes_and_nothing_found_is_an_answer(tmp_path: Path) -> None:
    found = {"sampleId": "/in/0.png", "label": "cat", "prob": "0.5", "bbox": "1,2,3,4.5"}
    better = {"sampleId": "0", "label": "1", "prob": 0.75, "bbox": [0, 0, 1, 1]}
    file = result_file(tmp_path, type="detection", result=[found, better])
    assert read_results(file, ["0.png", "1.png"], ["cat", "dog"]) == {
        "0.png": {
            "scores": [
                {"index": 1, "label": "1", "prob": 0.75, "bbox": [0.0, 0.0, 1.0, 1.0]},
                {"index": 0, "label": "cat", "prob": 0.5, "bbox": [1.0, 2.0, 3.0, 4.5]},
            ]
        },
        "1.png": {"scores": []},
    }


def test_the_prediction_of_a_program_that_finds_objects_has_detections(tmp_path: Path) -> None:
    score = {"index": 0, "label": "cat", "prob": 0.5}
    for number, (scores, kind) in enumerate(
        [([score | {"bbox": [1, 2, 3, 4]}], "detection"), ([score], "classification")]
    ):
        with contextlib.closing(ResultFiles(tmp_path / str(number))) as files:
            files.append(
                [{"sampleId": "a", "file": "a", "scores": []}, {"sampleId": "b", "file": "b", "scores": scores}]
            )
            assert summary(files.position, "classification")["type"] == kind
            assert summary(files.position, "classification")["best"]["sample"] == "b"


def test_vectors_and_samples_without_an_answer(tmp_path: Path) -> None:
    file = result_file(tmp_path, type="vector", result=[{"sampleId": "0.png", "vector": [1, 2.5]}])
    results = read_results(file, ["0.png", "1.png"], [])
    assert results["0.png"] == {"vector": [1.0, 2.5]}
    assert "answered nothing" in results["1.png"]["error"]


@pytest.mark.parametrize("entry", [7, {"sampleId": "0.png"}, {"sampleId": "0.png", "prob": "much"}])
def test_entries_that_are_no_scores_are_junk(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(JunkError):
        read_results(result_file(tmp_path, type="classification", result=[entry]), ["0.png"], [])
