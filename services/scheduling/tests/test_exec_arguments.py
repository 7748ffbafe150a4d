"""The command line of exec tasks: every option, what goes to the program, and what is wrong where."""

from __future__ import annotations

import contextlib
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduling_service.domain.exec_arguments import _OPTIONS, parse, split_words
from servicekit.errors import Code, ServiceError

START = "--exec-start PyTorch --model-main main.py"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--model-dir src", {"model_directory": "src"}),
        ("--model-dir=./src/", {"model_directory": "src"}),
        ("--numWorker 2", {"workers": 2}),
        ("--numWorker=2 --numPs=1", {"workers": 2, "parameter_servers": 1}),
        ("--gpuPerWorker 2", {"gpus_per_worker": 2}),
        ("--workerDeviceNum 2", {"gpus_per_worker": 2}),
        ("--workerDeviceNum 2 --workerDeviceType GPU", {"gpus_per_worker": 2}),
        ("--workerDeviceType gpu", {"gpus_per_worker": 1}),
        ("--workerDeviceType cpu --workerDeviceNum 2", {"gpus_per_worker": 0}),
        ("--workerMemory 8g", {"memory_bytes": 8 << 30}),
        ("--workerMemory 1.5GiB", {"memory_bytes": 3 << 29}),
        ("--workerMemory 512MB", {"memory_bytes": 512 << 20}),
        ("--workerMemoryLimit 1024", {"memory_bytes": 1024}),
        ("--workerMemoryLimit 4g --workerMemory 2g", {"memory_bytes": 2 << 30}),
        ("--workerCPULimit 1500m", {"cores": 1.5}),
        ("--ig my-group", {"instance_group": "my-group"}),
        ("--appName 'my first'", {"application_name": "my first"}),
        ("--cs-datastore-meta type=fs,data_path=mnist/raw", {"data_path": "mnist/raw"}),
        ("--cs-datastore-meta type=fs", {"data_path": ""}),
        ("--edt-options maxWorkers=4", {"max_workers": 4}),
        ("--msd-env A=1 --msd-env B=x=y --msd-env 'C='", {"environment": {"A": "1", "B": "x=y", "C": ""}}),
        ("--debug-level WARN", {"log_level": "warn"}),
        ("--numWorker 2 --numWorker 3", {"workers": 3}),
        ("", {"workers": None, "program_arguments": [], "command": [], "gpus_per_worker": 0, "warnings": []}),
    ],
)
def test_options(text: str, expected: dict[str, Any]) -> None:
    found = parse(f"{START} {text}")
    assert {name: getattr(found, name) for name in expected} == expected
    assert (found.framework, found.model_main, found.program_arguments) == ("PyTorch", "main.py", [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--epochs 3 --numWorker 2 --lr=0.1", ["--epochs", "3", "--lr=0.1"]),
        ("  --no-cuda    -x  --batch-size\t200\n", ["--no-cuda", "-x", "--batch-size", "200"]),
        ("--epochs 3 -- --numWorker 7 -- x", ["--epochs", "3", "--numWorker", "7", "--", "x"]),
        ("--name 'two words' \"a \\\" b\" c\\ d ''", ["--name", "two words", 'a " b', "c d", ""]),
        ("--a='b c'd", ["--a=b cd"]),
        ("--lr -1 $HOME *.py a;b", ["--lr", "-1", "$HOME", "*.py", "a;b"]),
    ],
)
def test_what_is_not_ours_is_the_programs(text: str, words: list[str]) -> None:
    assert list(parse(f"{START} {text}").program_arguments) == words


def test_a_command_replaces_the_program() -> None:
    found = parse("--exec-start PyTorch --user-cmd --numWorker 2 -- torchrun --nproc-per-node 2 main.py --numWorker 9")
    assert list(found.command) == ["torchrun", "--nproc-per-node", "2", "main.py", "--numWorker", "9"]
    assert (found.workers, found.model_main, found.program_arguments) == (2, "", [])


def test_what_means_nothing_here_is_said() -> None:
    found = parse(f"{START} --conda-env-name dlipy3 --msd-image-name=x --exclusive --numworker 2 --edt-options a=1")
    assert list(found.warnings) == [
        "--conda-env-name means nothing here and is left out",
        "--msd-image-name means nothing here and is left out",
        "--exclusive means nothing here and is left out",
        "--numworker goes to the program; --numWorker is what the platform knows",
        "--edt-options a means nothing here and is left out",
    ]
    assert list(found.program_arguments) == ["--numworker", "2"]


def test_passwords_are_not_shown() -> None:
    text = f"--username jo --password 'p w' {START} --jwt-token=abc --x 1"
    assert parse(text).shown == f"--username jo --password *** {START} --jwt-token=*** --x 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{START} --x 'open", "args, character 47: .* is not valid; allowed: a closing '"),
        (f'{START} --x "open', 'args, character 47: .* a closing "'),
        (f"{START} \\", "args, character 43: .* a character behind the backslash"),
        (f"{START} --numWorker", r"--numWorker \(args, character 43\): '' is not valid; allowed: a value behind it"),
        (f"{START} --numWorker --x", r"--numWorker \(args, character 43\)"),
        (f"{START} --numWorker two", r"--numWorker \(args, character 55\): 'two' .* a whole number from 1"),
        (f"{START} --numWorker=0", r"--numWorker \(args, character 43\): '0'"),
        (f"{START} --numWorker ٣", "a whole number"),
        (f"{START} --gpuPerWorker -1", "--gpuPerWorker"),
        (f"{START} --workerDeviceType tpu", "one of cpu, gpu"),
        (f"{START} --workerMemory lots", "a size such as"),
        (f"{START} --workerMemory 0g", "a size such as"),
        (f"{START} --workerCPULimit nan", "a number of cores"),
        (f"{START} --msd-env NOTHING", "NAME=VALUE"),
        (f"{START} --msd-env 1A=x", "NAME=VALUE"),
        (f"{START} --msd-env DLMESH_JOB_TOKEN=x", "not one that begins with DLMESH_JOB_"),
        (f"{START} --edt-options 4", "maxWorkers=N"),
        (f"{START} --edt-options maxWorkers=x", "maxWorkers"),
        (f"{START} --debug-level loud", "one of debug, info, warn, error"),
        (f"{START} --cs-datastore-meta type=hdfs,data_path=x", "type=fs,data_path=PATH"),
        (f"{START} --cs-datastore-meta data_path", "type=fs,data_path=PATH"),
        (f"{START} --cs-datastore-meta type=fs,data_path=../x", "relative to the data root"),
        (f"{START} --cs-datastore-meta type=fs,data_path=/etc", "relative to the data root"),
        (f"{START} --cs-datastore-meta type=fs,path=x", "type=fs,data_path=PATH"),
        ("--exec-start PyTorch --model-main ../main.py", r"--model-main \(args, character 35\).*inside the upload"),
        ("--exec-start PyTorch --model-main /main.py", "a relative path inside the upload"),
        ("--exec-start PyTorch --model-main a.py --model-dir ..", "--model-dir"),
        ("--exec-start PyTorch", "--model-main FILE"),
        ("--model-main main.py", "--exec-start FRAMEWORK"),
        ("", "--exec-start FRAMEWORK"),
        (f"{START} --user-cmd", "--user-cmd -- COMMAND"),
        (f"{START} --user-cmd --", "--user-cmd -- COMMAND"),
        (f"{START} --user-cmd=x -- y", "no value"),
        (f"{START} a\0b", "without NUL"),
        (f"{START} \ud800", "UTF-8"),
        (START + " x" * 40_000, "at most 65536 characters"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ServiceError, match=message) as caught:
        parse(text)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert len(caught.value.message) < 1000


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
OWN = st.sampled_from([f"--{name}" for name in _OPTIONS])
PIECES = st.one_of(WORDS, OWN, st.sampled_from(["--", "=", "'", '"', "\\", " ", "type=fs,data_path=", "4", "--x"]))


@given(st.lists(PIECES, max_size=12), st.sampled_from(["", " "]))
def test_nothing_but_a_refusal_escapes(pieces: list[str], between: str) -> None:
    text = between.join(pieces)
    for line in (text, f"{START} {text}"):
        with contextlib.suppress(ServiceError):
            parse(line)


@given(st.lists(WORDS))
def test_words_survive_quoting(words: list[str]) -> None:
    assert [word.text for word in split_words(shlex.join(words))] == words


@given(st.lists(WORDS), st.lists(WORDS))
def test_words_of_the_program_arrive_unchanged_and_in_order(before: list[str], behind: list[str]) -> None:
    def is_ours(word: str) -> bool:
        return word.startswith("--") and word[2:].partition("=")[0] in _OPTIONS

    before = [word for word in before if word != "--" and not is_ours(word)]
    line = f"{shlex.join(before)} --numWorker 2 {START} -- {shlex.join(behind)}"
    found = parse(line)
    assert list(found.program_arguments) == [*before, *behind]
    assert found.workers == 2


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_positions_are_those_of_the_text(text: str) -> None:
    try:
        words = split_words(text)
    except ServiceError:
        return
    assert all(text[word.start : word.end].strip(" \t\r\n\v\f") == text[word.start : word.end] for word in words)
    assert [word.start for word in words] == sorted(word.start for word in words)
    assert "".join(text[word.start : word.end] for word in words) == "".join(split_at_blanks(text, words))


def split_at_blanks(text: str, words: list[Any]) -> list[str]:
    """What is left of `text` without what lies between the words, which must be blanks."""
    ends = [0, *(word.end for word in words)]
    starts = [*(word.start for word in words), len(text)]
    assert all(not text[end:start].strip(" \t\r\n\v\f") for end, start in zip(ends, starts, strict=True))
    return [text[word.start : word.end] for word in words]
