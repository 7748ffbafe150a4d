"""The process that thinks, with algorithms that misbehave: what tests start in its place."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tuning_service.algorithms import registry
from tuning_service.algorithms.base import Algorithm, Answer, Evaluation, Suggestion
from tuning_service.worker import suggest


class Loud(Algorithm):
    """Prints on its standard output, by every way there is, and reads its input."""

    def ask(self, trials: Sequence[Evaluation], count: int) -> Answer:
        print('{"suggestions": [], "exhausted": true}', flush=True)
        os.write(1, b"no JSON at all\n" * 20)
        os.system("echo from a child")
        assert sys.stdin.read() == ""
        return Answer([Suggestion((len(trials),))])


class Raising(Algorithm):
    def ask(self, trials: Sequence[Evaluation], count: int) -> Answer:
        raise ZeroDivisionError("nothing to divide by")


class Eating(Algorithm):
    def ask(self, trials: Sequence[Evaluation], count: int) -> Answer:
        return Answer([Suggestion((len(bytearray(2 * 1024**3)),))])


class Leaving(Algorithm):
    """Ends its process each time."""

    def ask(self, trials: Sequence[Evaluation], count: int) -> Answer:
        print("goodbye", file=sys.stderr, flush=True)
        os._exit(7)


class Hanging(Algorithm):
    def ask(self, trials: Sequence[Evaluation], count: int) -> Answer:
        while True:
            pass


class Telling(Algorithm):
    """Answers with what it knows of the study: how many asks this object had, and the trials."""

    asks = 0

    def ask(self, trials: Sequence[Evaluation], count: int) -> Answer:
        self.asks += 1
        known = [[trial.number, trial.state, trial.losses] for trial in trials]
        notes = {"asks": self.asks, "trials": known, "most": self.problem.max_trials, "pid": os.getpid()}
        return Answer([Suggestion((1.0,), notes)])


if __name__ == "__main__":
    for algorithm in (Loud, Raising, Eating, Leaving, Hanging, Telling):
        entry = registry.Entry(f"__main__:{algorithm.__name__}")
        registry.ALGORITHMS = {**registry.ALGORITHMS, algorithm.__name__: entry}
    suggest.main()
