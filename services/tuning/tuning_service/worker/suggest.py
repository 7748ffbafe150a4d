"""`python -m tuning_service.worker.suggest PARENT MEMORY_BYTES`: thinks out what studies shall try next.

Reads a line of JSON for each ask and answers with one:

    {"study": uid, "algorithm": name, "problem": {...}, "since": n, "until": m, "trials": [...], "count": k}
    {"suggestions": [...], "exhausted": false} | {"error": text} | {"need": "all"}

`trials` are what changed after the change `since`, 0 being everything. What this process knows of a study is a cache:
it asks for all of them when it does not know the study as of then. An answer that takes long has fewer suggestions than
it was asked for. It ends with its input, and with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

from tuning_service.algorithms.base import Answer, Evaluation
from tuning_service.algorithms.registry import make_algorithm
from tuning_service.domain.problem_form import answer_form, read_evaluation, read_problem

# Of all studies together: numbers that make up their trials, each of which has some beside its place. With what an
# algorithm makes of them they take 40 to 130 bytes each.
KEPT_NUMBERS, NUMBERS_BESIDE = 16_000_000, 20
MAX_ERROR_CHARACTERS = 1000
# After so long an ask is answered with what there is.
THINKING_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


class Thinker:
    """Answers asks; knows the studies that it was asked about last, as many as have room."""

    def __init__(self, kept_numbers: int = KEPT_NUMBERS, thinking_seconds: float = THINKING_SECONDS) -> None:
        self._kept, self._thinking_seconds = kept_numbers, thinking_seconds
        self._studies: OrderedDict[str, _Study] = OrderedDict()

    def answer(self, ask: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a message; whatever goes wrong becomes one, too."""
        uid = ask["study"]
        # It comes back when all has gone well.
        study = self._studies.pop(uid, None)
        if ask["since"] == 0:
            study = None
        elif study is None or study.change != ask["since"]:
            return {"need": "all"}
        try:
            if study is None or not study.is_of(ask):
                study = _Study(ask, study.trials if study else [])
            study.take(map(read_evaluation, ask["trials"]), ask["until"])
            # More of its trials come first when nothing is asked for.
            if ask.get("question") == "importance":
                answer = {"importance": study.importance()}
            else:
                answer = answer_form(study.ask(ask["count"], self._thinking_seconds) if ask["count"] else Answer(()))
        except MemoryError:
            traceback.print_exc()
            return {"error": "it needs more memory than it may have"}
        except Exception as error:
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS]}
        self._studies[uid] = study
        while len(self._studies) > 1 and sum(one.numbers for one in self._studies.values()) > self._kept:
            self._studies.popitem(last=False)
        return answer


class _Study:
    def __init__(self, ask: Mapping[str, Any], trials: Iterable[Evaluation]) -> None:
        self._name, self._problem = ask["algorithm"], ask["problem"]
        self.algorithm = make_algorithm(self._name, read_problem(self._problem))
        self.trials: list[Evaluation] = []
        self.change = 0
        self.take(trials, 0)

    @property
    def numbers(self) -> int:
        """About how many make up its trials."""
        return (len(self.trials) + 1) * (len(self.algorithm.problem.space.dimensions) + NUMBERS_BESIDE)

    def is_of(self, ask: Mapping[str, Any]) -> bool:
        """False when the study is told otherwise now, such as with more trials."""
        return (self._name, self._problem) == (ask["algorithm"], ask["problem"])

    def ask(self, count: int, seconds: float) -> Answer:
        """What to try next: `count` of it, or what is found within about so long, one at least."""
        end = time.monotonic() + seconds
        self.algorithm.is_late = lambda: time.monotonic() >= end
        return self.algorithm.ask(tuple(self.trials), count)

    def importance(self) -> dict[str, float]:
        """What each parameter explains."""
        # Takes long to import, and most processes are never asked for it.
        from tuning_service.algorithms.importance import importance

        return importance(self.algorithm.problem, self.trials)

    def take(self, trials: Iterable[Evaluation], change: int) -> None:
        """Know what changed."""
        for trial in trials:
            # Numbers begin with 1 and have no gaps, but pages come in the order of changes.
            if trial.number > len(self.trials):
                self.trials += [trial] * (trial.number - len(self.trials))
            self.trials[trial.number - 1] = trial
        self.change = change


def serve(asks: BinaryIO, answers: BinaryIO) -> None:
    """Answer each line of `asks` until there is none."""
    thinker = Thinker()
    for line in asks:
        answers.write(json.dumps(thinker.answer(json.loads(line))).encode() + b"\n")
        answers.flush()


def main() -> None:
    parent, memory_bytes = int(sys.argv[1]), int(sys.argv[2])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    # A service that is interrupted ends this process itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Libraries may print, and read, whatever they like.
    with os.fdopen(os.dup(0), "rb") as asks, os.fdopen(os.dup(1), "wb") as answers:
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        serve(asks, answers)


if __name__ == "__main__":
    main()
