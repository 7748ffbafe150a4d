"""The command line of an exec task: what of it is ours, and what is the program's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

from servicekit.errors import ServiceError, invalid

MAX_LENGTH = 64 * 1024
MAX_WORKERS = 100_000
MAX_DEVICES = 1024
LOG_LEVELS = ("debug", "info", "warn", "error")
HIDDEN = "***"
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNIT_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_CORES = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(m?)")
_BLANKS = " \t\r\n\v\f"


@dataclass(frozen=True)
class Word:
    """A word without its quotes, and where it stands: `start` to `end`, characters counted from 0."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class ExecArguments:
    """A command line as it was understood. Empty texts, None and 0 mean that an option was not given.

    `program_arguments` are the words that are none of ours, in their order. `command` replaces the program. `shown` is
    the command line as people may see it: passwords in it are hidden. `warnings` are for the task's log.
    """

    framework: str
    shown: str
    model_main: str = ""
    model_directory: str = ""
    program_arguments: Sequence[str] = ()
    command: Sequence[str] = ()
    instance_group: str = ""
    application_name: str = ""
    data_path: str = ""
    datastore: str = ""
    workers: int | None = None
    parameter_servers: int | None = None
    max_workers: int | None = None
    gpus_per_worker: int = 0
    memory_bytes: int = 0
    cores: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)
    log_level: str = ""
    warnings: Sequence[str] = ()


def split_words(text: str) -> list[Word]:
    """Words as a shell splits them: blanks separate, quotes and backslashes keep together; nothing else is special.

    400 with the position of a quote that is not closed, or of a backslash with nothing behind it.
    """
    words: list[Word] = []
    position, length = 0, len(text)
    while position < length:
        if text[position] in _BLANKS:
            position += 1
            continue
        start = position
        parts: list[str] = []
        while position < length and text[position] not in _BLANKS:
            piece, position = _piece(text, position)
            parts.append(piece)
        words.append(Word("".join(parts), start, position))
    return words


def _piece(text: str, position: int) -> tuple[str, int]:
    """One character, or what is in quotes, and the position behind it."""
    character = text[position]
    if character == "'":
        end = text.find("'", position + 1)
        if end < 0:
            raise _wrong(text, position, "a closing ' for this one; write \"'\" where an apostrophe is meant")
        return text[position + 1 : end], end + 1
    if character == '"':
        parts = []
        at = position + 1
        while at < len(text) and text[at] != '"':
            if text[at] == "\\" and text[at + 1 : at + 2] in ('"', "\\"):
                at += 1
            parts.append(text[at])
            at += 1
        if at >= len(text):
            raise _wrong(text, position, 'a closing " for this one')
        return "".join(parts), at + 1
    if character == "\\":
        if position + 1 >= len(text):
            raise _wrong(text, position, "a character behind the backslash")
        return text[position + 1], position + 2
    return character, position + 1


def _wrong(shown: object, position: int, allowed: str) -> ServiceError:
    return invalid(f"args, character {position + 1}", shown, allowed, reason="BAD_ARGUMENTS")


class _Kind(Enum):
    VALUE = "takes a value"
    FLAG = "stands alone"
    IGNORED = "takes a value that means nothing here"
    IGNORED_FLAG = "stands alone and means nothing here"
    SECRET = "takes a value that nobody should see"


_OPTIONS: Mapping[str, _Kind] = {
    **dict.fromkeys(
        (
            *("exec-start", "model-main", "model-dir", "cs-datastore-meta", "numWorker", "gpuPerWorker"),
            *("workerDeviceNum", "workerDeviceType", "workerMemory", "workerMemoryLimit", "workerCPULimit", "numPs"),
            *("edt-options", "appName", "ig", "msd-env", "debug-level"),
        ),
        _Kind.VALUE,
    ),
    "user-cmd": _Kind.FLAG,
    **dict.fromkeys(
        (
            *("conda-env-name", "conda-home", "conda-env-yaml", "conda-package", "python-version", "msd-image-name"),
            *("msd-image-pull-secret", "msd-image-pull-policy", "msd-attr", "msd-priority", "msd-pending-timeout"),
            *("msd-task0-node-selector", "msd-task12n-node-selector", "msd-task12n-device-type", "msd-pack-id"),
            *("msd-podaffinity-rule", "msd-podaffinity-topology-key", "lsf-gpu-syntax", "submit-user", "consumer"),
            *("driverDeviceType", "driverDeviceNum", "driverMemory", "driverCPULimit", "driverMemoryLimit"),
            *("cs-rmq-meta", "cs-url-meta", "data-source", "accelerators", "mpiarg", "ddl_opts"),
            *("pbmodel-cmd", "pbmodel-name", "query-args", "rest-host", "rest-port", "master-host", "username"),
        ),
        _Kind.IGNORED,
    ),
    "exclusive": _Kind.IGNORED_FLAG,
    **dict.fromkeys(("password", "jwt-token", "cs-url-bearer"), _Kind.SECRET),
}
_BY_CASE = {name.casefold(): name for name in _OPTIONS}


def parse(text: str) -> ExecArguments:
    """What a command line asks for; 400 that says where it is wrong and what is allowed there.

    Whether the framework, the group and the files exist is for others to say.
    """
    if len(text) > MAX_LENGTH:
        raise invalid("args", text, f"at most {MAX_LENGTH} characters")
    if "\0" in text:
        raise _wrong(text, text.index("\0"), "a text without NUL")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise invalid("args", text, "UTF-8 text")
    reader = _Reader(text)
    reader.read()
    return reader.arguments()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.words = split_words(text)
        self.values: dict[str, Any] = {}
        self.program: list[str] = []
        self.behind: list[str] = []
        self.environment: dict[str, str] = {}
        self.warnings: list[str] = []
        self.secrets: list[tuple[int, int, str]] = []
        self.user_command: Word | None = None

    def read(self) -> None:
        number = 0
        while number < len(self.words):
            word = self.words[number]
            number += 1
            if word.text == "--":
                self.behind = [rest.text for rest in self.words[number:]]
                return
            name, equals, value = word.text.removeprefix("--").partition("=")
            kind = _OPTIONS.get(name) if word.text.startswith("--") else None
            if kind is None:
                self._of_the_program(word, name)
                continue
            if kind in (_Kind.FLAG, _Kind.IGNORED_FLAG):
                if equals:
                    raise self._refused(word, name, value, "no value")
                if kind is _Kind.FLAG:
                    self.user_command = word
                else:
                    self._ignore(name)
                continue
            at = word
            if not equals:
                if number >= len(self.words) or self.words[number].text.startswith("--"):
                    raise self._refused(word, name, "", f"a value behind it, or --{name}=VALUE")
                at = self.words[number]
                value = at.text
                number += 1
            if kind is _Kind.VALUE:
                _TAKE[name](self, name, value, at)
            else:
                self._ignore(name)
                if kind is _Kind.SECRET:
                    self.secrets.append((at.start, at.end, HIDDEN if not equals else f"--{name}={HIDDEN}"))

    def arguments(self) -> ExecArguments:
        command: list[str] = []
        program = [*self.program, *self.behind]
        if self.user_command is not None:
            if not self.behind:
                raise self._refused(self.user_command, "user-cmd", "", "a command at the end: --user-cmd -- COMMAND")
            command, program = [*self.behind, *self.program], []
        if "exec-start" not in self.values:
            raise invalid("args", self.text, "--exec-start FRAMEWORK; GET /execs/frameworks lists them")
        if not command and "model-main" not in self.values:
            raise invalid("args", self.text, "--model-main FILE, the program in the upload, or --user-cmd -- COMMAND")
        values = self.values
        gpus = values.get("gpuPerWorker", 0)
        devices = values.get("workerDeviceNum")
        if values.get("workerDeviceType") == "cpu":
            gpus = 0
        elif devices is not None:
            gpus = devices
        elif values.get("workerDeviceType") == "gpu":
            gpus = gpus or 1
        return ExecArguments(
            framework=values["exec-start"],
            shown=self._shown(),
            model_main=values.get("model-main", ""),
            model_directory=values.get("model-dir", ""),
            program_arguments=program,
            command=command,
            instance_group=values.get("ig", ""),
            application_name=values.get("appName", ""),
            data_path=values.get("data_path", ""),
            datastore=values.get("cs-datastore-meta", ""),
            workers=values.get("numWorker"),
            parameter_servers=values.get("numPs"),
            max_workers=values.get("maxWorkers"),
            gpus_per_worker=gpus,
            memory_bytes=values.get("workerMemory") or values.get("workerMemoryLimit") or 0,
            cores=values.get("workerCPULimit", 0.0),
            environment=self.environment,
            log_level=values.get("debug-level", ""),
            warnings=self.warnings,
        )

    def _of_the_program(self, word: Word, name: str) -> None:
        self.program.append(word.text)
        known = _BY_CASE.get(name.casefold())
        if word.text.startswith("--") and known:
            self.warnings.append(f"--{name} goes to the program; --{known} is what the platform knows")

    def _ignore(self, name: str) -> None:
        self.warnings.append(f"--{name} means nothing here and is left out")

    def _shown(self) -> str:
        shown, end = [], 0
        for start, stop, text in self.secrets:
            shown += [self.text[end:start], text]
            end = stop
        return "".join([*shown, self.text[end:]])

    def _refused(self, word: Word, name: str, value: object, allowed: str) -> ServiceError:
        error = invalid(f"--{name} (args, character {word.start + 1})", value, allowed, reason="BAD_ARGUMENTS")
        error.metadata["field"] = name
        return error

    def text_value(self, name: str, value: str, word: Word) -> None:
        if not value.strip() or len(value) > 1000:
            raise self._refused(word, name, value, "a text of 1 to 1000 characters")
        self.values[name] = value

    def path_value(self, name: str, value: str, word: Word) -> None:
        path = PurePosixPath(value)
        if not value or path.is_absolute() or ".." in path.parts or not path.parts or len(value) > 4096:
            raise self._refused(word, name, value, "a relative path inside the upload")
        self.values[name] = str(path)

    def word_of(self, allowed: Sequence[str]) -> Callable[[str, str, Word], None]:
        def take(name: str, value: str, word: Word) -> None:
            if value.lower() not in allowed:
                raise self._refused(word, name, value, "one of " + ", ".join(allowed))
            self.values[name] = value.lower()

        return take

    def number_of(self, least: int, most: int) -> Callable[[str, str, Word], None]:
        def take(name: str, value: str, word: Word) -> None:
            # Digits of other alphabets are digits to Python.
            if not (value.isascii() and value.isdecimal() and len(value) <= 10 and least <= int(value) <= most):
                raise self._refused(word, name, value, f"a whole number from {least} to {most}")
            self.values[name] = int(value)

        return take

    def size(self, name: str, value: str, word: Word) -> None:
        match = _SIZE.fullmatch(value.strip())
        size = math.floor(float(match[1]) * _UNIT_BYTES[match[2].lower()]) if match else 0
        if not 1 <= size < 1 << 62:
            raise self._refused(word, name, value, "a size such as 512m, 8g or 8589934592")
        self.values[name] = size

    def cores(self, name: str, value: str, word: Word) -> None:
        match = _CORES.fullmatch(value.strip())
        cores = float(match[1]) / (1000 if match[2] else 1) if match else 0.0
        if not 0 < cores <= 10_000:
            raise self._refused(word, name, value, "a number of cores such as 2, 0.5 or 500m")
        self.values[name] = cores

    def variable(self, name: str, value: str, word: Word) -> None:
        key, equals, text = value.partition("=")
        if not equals or not _VARIABLE.fullmatch(key) or key.startswith("DLMESH_JOB_"):
            allowed = "NAME=VALUE, the name letters, digits and '_', not one that begins with DLMESH_JOB_"
            raise self._refused(word, name, value, allowed)
        self.environment[key] = text

    def elastic(self, name: str, value: str, word: Word) -> None:
        for pair in value.split(","):
            key, equals, text = pair.partition("=")
            if key.strip() == "maxWorkers":
                self.number_of(1, MAX_WORKERS)("maxWorkers", text.strip(), word)
            elif equals and key.strip():
                self.warnings.append(f"--{name} {key.strip()} means nothing here and is left out")
            else:
                raise self._refused(word, name, value, "maxWorkers=N")

    def datastore(self, name: str, value: str, word: Word) -> None:
        allowed = "type=fs,data_path=PATH, the path relative to the data root of the platform"
        pairs = [pair.partition("=") for pair in value.split(",")]
        found = {key.strip(): text.strip() for key, _, text in pairs}
        bad = any(not equals for _, equals, _ in pairs) or len(found) < len(pairs) or not found.keys() <= _DATASTORE
        path = found.get("data_path", "")
        if bad or found.get("type", "fs").lower() != "fs" or ("data_path" in found and not path):
            raise self._refused(word, name, value, allowed)
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise self._refused(word, name, value, allowed)
        self.values[name] = value
        self.values["data_path"] = path


_DATASTORE = {"type", "data_path"}
_Take = Callable[[_Reader, str, str, Word], None]


def _number(least: int, most: int) -> _Take:
    return lambda reader, name, value, word: reader.number_of(least, most)(name, value, word)


def _one_of(*allowed: str) -> _Take:
    return lambda reader, name, value, word: reader.word_of(allowed)(name, value, word)


_TAKE: Mapping[str, _Take] = {
    "exec-start": _Reader.text_value,
    "model-main": _Reader.path_value,
    "model-dir": _Reader.path_value,
    "cs-datastore-meta": _Reader.datastore,
    "numWorker": _number(1, MAX_WORKERS),
    "gpuPerWorker": _number(0, MAX_DEVICES),
    "workerDeviceNum": _number(0, MAX_DEVICES),
    "workerDeviceType": _one_of("cpu", "gpu"),
    "workerMemory": _Reader.size,
    "workerMemoryLimit": _Reader.size,
    "workerCPULimit": _Reader.cores,
    "numPs": _number(0, MAX_WORKERS),
    "edt-options": _Reader.elastic,
    "appName": _Reader.text_value,
    "ig": _Reader.text_value,
    "msd-env": _Reader.variable,
    "debug-level": _one_of(*LOG_LEVELS),
}
