"""What a start of a training says, and what of it can be judged without looking anything up."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from urllib.parse import urlsplit

from servicekit.errors import invalid
from servicekit.jobs import MAX_PRIORITY, MAX_SECONDS
from servicekit.names import check_name

from training_service.domain.trials import TrialParts

MAX_RESTARTS = 100
MAX_COMMAND_LENGTH = 10_000
MAX_ADDRESS_LENGTH = 8192
# Words, as they stand in the command, that mean something to a shell only: && || | ; & > 2>&1 <in.txt and their like.
_OPERATOR = re.compile(r"""[|&;]+|[^;='"]+;+|(?:\d*|&)(?:>>?|<{1,3}|<>)[|&]?[^<>|&]*""")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_NO_SHELL = "because it is run without a shell; bash -c '...' runs what is in the quotes in one"


@dataclass(frozen=True)
class TrainingRequest:
    """What is asked for; empty text, 0 and None mean that a field was not given. `trial` makes it one of a study."""

    name: str
    framework: str
    cluster_size: int
    command: str = ""
    weights_url: str = ""
    initial_weights: str = ""
    weights_folder: str = ""
    gpu_percentage: int = 0
    test_interval: int = 0
    test_iterations: int = 0
    sync_mode: str = ""
    min_workers: int = 0
    checkpoint_interval: int = 0
    checkpoints_kept: int = 0
    max_restarts: int | None = None
    max_silent_seconds: int = 0
    priority: int = 0
    max_seconds: int = 0
    trial: TrialParts | None = None


def check_request(request: TrainingRequest) -> None:
    """Raise for what can be judged without looking anything up."""
    if request.trial is None:
        check_name("trainName", request.name)
    if not request.framework:
        raise invalid("dlFramework", "", "the name of a framework; GET /frameworks/all lists them")
    if request.cluster_size < 1:
        raise invalid("clusterSize", request.cluster_size, "1 or more")
    for field, value, most in (
        ("gpuRatio", request.gpu_percentage, 100),
        ("testInterval", request.test_interval, None),
        ("testIteration", request.test_iterations, None),
        ("minWorkers", request.min_workers, request.cluster_size),
        ("checkpointInterval", request.checkpoint_interval, None),
        ("checkpointsKept", request.checkpoints_kept, None),
        ("maxRestarts", request.max_restarts or 0, MAX_RESTARTS),
        ("maxSilentSeconds", request.max_silent_seconds, None),
        ("maxSeconds", request.max_seconds, MAX_SECONDS),
    ):
        if value < 0 or (most is not None and value > most):
            raise invalid(field, value, "0 or more" if most is None else f"0 to {most}")
    if not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
        raise invalid("priority", request.priority, f"{-MAX_PRIORITY} to {MAX_PRIORITY}")
    if request.sync_mode.upper() not in ("", "SYNC", "ASYNC"):
        raise invalid("syncMode", request.sync_mode, ("SYNC", "ASYNC"))
    if request.weights_url:
        if request.initial_weights or request.weights_folder:
            raise invalid("wtURL", request.weights_url, "not together with wfinit or wtfolder")
        _check_address(request.weights_url)
    elif request.initial_weights and request.weights_folder:
        raise invalid("wtfolder", request.weights_folder, "not together with wfinit")
    if request.command:
        _check_command(request.command)


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or len(address) > MAX_ADDRESS_LENGTH or not address.isprintable() or " " in address:
        allowed = (
            f"an http or https address of at most {MAX_ADDRESS_LENGTH} characters without spaces, its port, if "
            "any, up to 65535; in a name or password / ? # [ ] are written as %2F %3F %23 %5B %5D"
        )
        raise invalid("wtURL", address, allowed)


def _check_command(command: str) -> None:
    if "\0" in command or len(command) > MAX_COMMAND_LENGTH:
        raise invalid("cmd", command[:100], f"at most {MAX_COMMAND_LENGTH} characters, none of them NUL")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise invalid("cmd", command, f"a command line with closed quotes ({error})") from error
    if not words:
        raise invalid("cmd", command, "a command line such as python train.py --epochs 3")
    for word in _as_written(command):
        # What is quoted is meant as it is.
        has_substitution = ("$(" in word or "`" in word) and not {"'", '"'} & {*word}
        if has_substitution or _OPERATOR.fullmatch(word):
            raise invalid("cmd", command, f"a command line without {word[:50]}, {_NO_SHELL}")
    if _ASSIGNMENT.fullmatch(words[0]):
        raise invalid("cmd", command, f"a program and its arguments, not {words[0][:50]} before it, {_NO_SHELL}")


def _as_written(command: str) -> list[str]:
    """The words of a command with their quotes and backslashes."""
    try:
        return shlex.split(command, posix=False)
    except ValueError:
        # A quote behind a backslash, which only the other rules know.
        return []
