"""The trials that a user wrote down, one after the other as they stand: no search at all."""

from __future__ import annotations

from collections.abc import Sequence

from tuning_service.algorithms.base import Algorithm, Answer, Evaluation, Suggestion


class ExperimentList(Algorithm):
    """`settings["experiments"]` is how many there are. The note `experiment` is the index of the one to run, from 0;
    places are empty."""

    def ask(self, trials: Sequence[Evaluation], count: int) -> Answer:
        experiments = int(self.problem.settings["experiments"])
        begun = sum("experiment" in trial.notes for trial in trials)
        indices = range(begun, min(begun + count, experiments))
        suggestions = [Suggestion((), {"experiment": index}) for index in indices]
        return Answer(suggestions, is_exhausted=len(suggestions) < count)
