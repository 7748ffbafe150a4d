"""Programs that have only an inference.py, as those of the original platform: run as they are, for what was batched."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, ClassVar

from servicekit.plain_folders import copy_plain_folder

from inference_service.backends.base import SERVING_FILE, Backend, ExportError, Source
from inference_service.backends.entries import ITEM, LIMITS, RESULT, copy_code, copy_file, copy_runner, write_config
from inference_service.triton.installation import INHERITED
from inference_service.triton.probes import probe_with_item

PROGRAM, TABLE = "inference.py", "data.csv"
# Instead of a serving.json, by which models of known tasks are told from these.
DESCRIPTION = "program.json"
RUNNER = "program_runner.py"
MODULES = (
    *("bytes_tensors.py", "model_room.py"),
    *("program_host.py", "program_records.py", "program_results.py", "program_runs.py"),
)
# A run that takes longer is ended.
RUN_SECONDS = 120
MAX_LABEL_BYTES = 16 * 1024**2
MAX_PARAMETER_BYTES = 16 * 1024**2
EXAMPLE_SECONDS = 120
# Of the picture, and of what is said where there is none.
MAX_OUTPUT_BYTES = 4 * 1024**2
RECORD_KINDS, SIDES = ("lmdb", "tfrecords"), ("channels", "height", "width")
# Checkpoints to go on from, and what elastic trainings go on with.
_RESUMPTION_FOLDERS = frozenset({"steps", "__pycache__"})
_SUPERSEDED = re.compile(r"model_epoch_\d+\.\w+|.*optimizer_state.*")
_FINAL = re.compile(r"model_epoch_final\.\w+")


class ProgramBackend(Backend):
    """Needs inference.py, and whatever that looks for in the folder of checkpoints; its results are those of
    `inference_helper`. `ITEM` (BYTES [1], an encoded picture) -> `RESULT` (BYTES [1], JSON)."""

    framework: ClassVar[str] = "PyTorch"

    def refusal(self, source: Source) -> str:
        if not (source.code / PROGRAM).is_file():
            return f"the model has no {PROGRAM}"
        if not any(entry.name != SERVING_FILE for entry in _left_by(source.checkpoints)):
            return "the training left no weights in --train_dir"
        data = _data_folder(source, _parameters(source))
        if data is not None and (data.name == TABLE or (data / TABLE).is_file()):
            return f"a model with only an {PROGRAM} is served for pictures; this one was trained on a table"
        return ""

    def write(self, source: Source, entry: Path) -> None:
        if reason := self.refusal(source):
            raise ExportError(reason)
        version, parameters = entry / "1", _parameters(source)
        bundle = version / "bundle"
        bundle.mkdir(parents=True)
        copy_code(source, bundle / "code")
        _copy_checkpoints(source.checkpoints, bundle / "checkpoints")
        labels: list[str] = []
        if parameters:
            (bundle / "parameters.json").write_text(json.dumps(parameters), encoding="utf-8")
        data = _data_folder(source, parameters)
        if data is not None:
            labels = _labels(data.parent / "labels.txt")
        if labels:
            (bundle / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        records, example = example_of(data, Path(*source.checkpoints.parts[:-3]))
        description = {"framework": self.framework, "labels": labels, "records": records}
        (bundle / DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
        copy_runner(Path(__file__).with_name(RUNNER), MODULES, version)
        write_config(entry, source.name, [ITEM.replace(" optional: true", "")], [RESULT], probe_with_item(example))
        with (entry / "config.pbtxt").open("a", encoding="utf-8") as config:
            config.write(f'parameters {{ key: "run_seconds" value {{ string_value: "{RUN_SECONDS}" }} }}\n')


class TensorFlowProgramBackend(ProgramBackend):
    """The same, for programs that import TensorFlow or Keras."""

    framework = "TensorFlow"


def example_of(data: Path | None, home: Path) -> tuple[dict[str, Any] | None, bytes]:
    """The form of the records in a folder and a picture of them as a PNG, or None and one in grey.

    The records are of users: what they do to who reads them they do to a process of its own, which of the platform's
    `home` reaches the folder alone.
    """
    command = [sys.executable, "-I", "-m", "inference_service.backends.example_picture"]
    command += [str(data or ""), str(home), str(MAX_OUTPUT_BYTES)]
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=environment | {"OMP_NUM_THREADS": "1"},
                timeout=EXAMPLE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ExportError(f"no picture can be read from {data} within {EXAMPLE_SECONDS} s") from None
        # It limits what it writes; what has taken it over can do no more.
        words, content = (_from_start(file) for file in (errors, output))
    if done.returncode:
        how = words.decode(errors="replace")[-300:] or f"its reader ended with {done.returncode}"
        raise ExportError(f"no picture can be read from {data}: {how}")
    try:
        line, _, picture = content.partition(b"\n")
        form = json.loads(line)
        if form is not None:
            form = {"kind": RECORD_KINDS[RECORD_KINDS.index(form["kind"])]} | {name: int(form[name]) for name in SIDES}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(f"no picture can be read from {data}: {error!r}") from None
    return form, picture


def _from_start(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(MAX_OUTPUT_BYTES)


def _copy_checkpoints(source: Path, target: Path) -> None:
    target.mkdir()
    for entry in _left_by(source):
        if entry.is_dir():
            copy_plain_folder(entry, target / entry.name, LIMITS, "checkpoints")
        else:
            copy_file(source, entry.name, target / entry.name)


def _left_by(checkpoints: Path) -> list[Path]:
    """What a training leaves for a program to read: files and folders, without what it would go on with.

    Links are left out, but those to files beside them.
    """
    # A link in its place could lead to anything.
    entries = sorted(checkpoints.iterdir()) if checkpoints.is_dir() and not checkpoints.is_symlink() else []
    if len(entries) > LIMITS.members:
        raise ExportError(f"the training has more than {LIMITS.members} checkpoints")
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    files = [entry for entry in visible if _is_plain(entry)]
    if any(_FINAL.fullmatch(entry.name) for entry in files):
        files = [entry for entry in files if not _SUPERSEDED.fullmatch(entry.name)]
    folders = [entry for entry in visible if entry.is_dir() and not entry.is_symlink()]
    return files + [entry for entry in folders if entry.name not in _RESUMPTION_FOLDERS]


def _is_plain(entry: Path) -> bool:
    if entry.is_symlink():
        beside = entry.readlink()
        entry = entry.parent / beside.name if beside.name == str(beside) else entry
    return stat.S_ISREG(entry.lstat().st_mode) if os.path.lexists(entry) else False


def _parameters(source: Source) -> dict[str, Any]:
    """What the parameter modules answer from, as the training wrote it beside its checkpoints; empty for nothing."""
    content = _read(source.checkpoints.parent / "parameters-0.json", MAX_PARAMETER_BYTES)
    try:
        parameters = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return parameters if isinstance(parameters, dict) else {}


def _data_folder(source: Source, parameters: dict[str, Any]) -> Path | None:
    """Of the split that the training learned from; None unless it is one of the platform's own datasets."""
    splits = parameters.get("data")
    train = splits.get("train") if isinstance(splits, dict) else None
    if not isinstance(train, str) or not train or "\0" in train:
        return None
    try:
        # HOME/trainings/UID/checkpoints: the file with the path is where programs may write.
        datasets, folder = (source.checkpoints.parents[2] / "datasets").resolve(), Path(train).resolve()
    except (OSError, IndexError, RuntimeError):
        return None
    return folder if datasets in folder.parents else None


def _labels(file: Path) -> list[str]:
    text = _read(file, MAX_LABEL_BYTES).decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _read(file: Path, most_bytes: int) -> bytes:
    """A regular file; nothing when it is not there, something else, or larger."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as content:
        facts = os.fstat(descriptor)
        return content.read() if stat.S_ISREG(facts.st_mode) and facts.st_size <= most_bytes else b""
