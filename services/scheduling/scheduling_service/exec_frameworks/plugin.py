"""A framework that an administrator installed: a folder with framework.json and a program that makes commands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from servicekit.errors import Code, ServiceError, invalid

from scheduling_service.domain.exec_arguments import ExecArguments
from scheduling_service.domain.exec_plan import ExecPlan
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.exec_frameworks.base import ExecFramework
from scheduling_service.usecases.exec_ports import ExecDescription

DESCRIPTION_FILE = "framework.json"
GENERATOR_SECONDS = 10.0
MAX_BYTES = 1024 * 1024
MAX_WORDS, MAX_WORD_LENGTH = 10_000, 100_000
DEFAULTS = ("numWorker", "maxWorkers")


class PluginFramework(ExecFramework):
    """Of the folder `folder`; 400 saying what is wrong with its framework.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = _read(folder / DESCRIPTION_FILE)
        self.name = _text(facts, "name")
        lines = facts.get("desc", [])
        lines = [lines] if isinstance(lines, str) else lines
        if not isinstance(lines, list) or not lines or not all(isinstance(line, str) and line for line in lines):
            raise _wrong("desc", lines, "a text, or a list of texts: what it is, then example command lines")
        self.description, self.examples = lines[0], tuple(lines[1:])
        self.generator = _text(facts, "generator")
        path = folder / self.generator
        if Path(self.generator).name != self.generator or not path.is_file():
            raise _wrong("generator", self.generator, "a file of the plug-in's folder")
        if path.suffix != ".py" and not os.access(path, os.X_OK):
            raise _wrong("generator", self.generator, "a .py file or an executable one")
        defaults = facts.get("defaults", {})
        if not isinstance(defaults, dict) or not defaults.keys() <= {*DEFAULTS}:
            raise _wrong("defaults", defaults, f"an object with {', '.join(DEFAULTS)}")
        for key, value in defaults.items():
            if type(value) is not int or not 0 < value <= 100_000:
                raise _wrong(f"defaults.{key}", value, "a whole number from 1")
        self.defaults: Mapping[str, int] = defaults
        self.shown_version = str(facts.get("version", ""))[:100]
        self.distribute_strategy = str(facts.get("distributeStrategy", ""))[:100]

    @property
    def version(self) -> str:
        return self.shown_version

    def plan(self, arguments: ExecArguments, group: InstanceGroup, task: ExecDescription) -> ExecPlan:
        most = arguments.max_workers or self.defaults.get("maxWorkers", 0)
        workers = most or arguments.workers or self.defaults.get("numWorker", 1)
        if arguments.command:
            return ExecPlan(ranks=workers, min_ranks=1 if most else 0, warm=True)
        servers = arguments.parameter_servers or 0
        question = {
            "task": asdict(task),
            "framework": self.name,
            "group": {"name": group.name, "slots": group.slots, "gpus": group.gpus},
            "workers": workers,
            "parameterServers": servers,
            "isElastic": bool(most),
            "gpusPerWorker": arguments.gpus_per_worker,
            "memoryBytesPerWorker": arguments.memory_bytes,
            "arguments": list(arguments.program_arguments),
            "environment": dict(arguments.environment),
        }
        command, environment = self._ask(question)
        return ExecPlan(
            ranks=workers + servers,
            min_ranks=1 if most else 0,
            parameter_servers=servers,
            command=command,
            environment=environment,
            warm=True,
        )

    def _ask(self, question: Mapping[str, Any]) -> tuple[Sequence[str], Mapping[str, str]]:
        """The generator's answer; 400 that says what is wrong with it."""
        path = str(self.folder / self.generator)
        command = [sys.executable, "-I", path] if path.endswith(".py") else [path]
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                cwd=self.folder,
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                start_new_session=True,
            )
            try:
                process.communicate(json.dumps(question).encode(), timeout=GENERATOR_SECONDS)
            except subprocess.TimeoutExpired:
                raise self._failed(f"did not answer within {GENERATOR_SECONDS:g} s") from None
            finally:
                # With all it started.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.returncode:
                errors.seek(0)
                said = errors.read(2000).decode(errors="replace").strip()
                raise self._failed(f"ended with {process.returncode}: {said or 'without a word'}")
            output.seek(0)
            answer = output.read(MAX_BYTES + 1)
        return self._understood(answer)

    def _understood(self, answer: bytes) -> tuple[Sequence[str], Mapping[str, str]]:
        try:
            value = json.loads(answer) if len(answer) <= MAX_BYTES else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self._failed('answered no JSON object like {"command": [...], "environment": {...}}')
        words, environment = value.get("command"), value.get("environment", {})
        is_command = isinstance(words, list) and 0 < len(words) <= MAX_WORDS and all(_is_word(word) for word in words)
        if not is_command or not words or not words[0]:
            raise self._failed("answered no command, a list of texts with a program first")
        if not isinstance(environment, dict) or not all(
            _is_word(key) and _is_word(text) and key and "=" not in key for key, text in environment.items()
        ):
            raise self._failed("answered no environment, an object of texts")
        return words, environment

    def _failed(self, what: str) -> ServiceError:
        return ServiceError(
            Code.INVALID_ARGUMENT,
            "FRAMEWORK_REFUSED",
            f"framework {self.name}: its command generator {what}",
            {"field": "args", "framework": self.name},
        )


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_WORD_LENGTH and "\0" not in value


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as reader:
            facts = json.loads(reader.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise invalid("path", f"({file.name}: {error})", f"a folder with a readable {DESCRIPTION_FILE}") from error
    if not isinstance(facts, dict):
        raise invalid("path", f"({file.name})", f"a folder whose {DESCRIPTION_FILE} is an object")
    return facts


def _text(facts: Mapping[str, Any], key: str) -> str:
    value = facts.get(key)
    if not isinstance(value, str) or not value or len(value) > 255 or "\0" in value:
        raise _wrong(key, value, "a text")
    return value


def _wrong(key: str, value: object, allowed: str) -> ServiceError:
    return invalid(f"{DESCRIPTION_FILE}, {key}", value, allowed)
