"""ASHA: what is good goes on at once, nobody waits for anybody (Li et al., MLSys 2020).

A trial that is among the best floor(done/eta) of those that have ended on its rung goes on to the next one; when there
is none such, a new configuration begins on the lowest. There is one ladder of rungs, not several as in Hyperband: what
those guard against, results on too little of the resource that mislead, users rule out better by MinResource, and one
ladder promotes after as few trials as possible. It goes on until its limit; where there is none, until it is stopped or
has tried every configuration.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuning_service.algorithms.base import Algorithm, Answer, Evaluation, Problem, Suggestion, TrialState
from tuning_service.algorithms.rungs import Configurations, Levels, best_of
from tuning_service.domain.space import Place


class Asha(Algorithm):
    """Every trial's notes say its `rung`, its `resource`, and the `parent` that it goes on from. Trials without such
    notes, which others suggested, are on no rung, but count against the limit."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.levels = Levels.of(problem.settings)
        self._configurations = Configurations(problem)

    def ask(self, trials: Sequence[Evaluation], count: int) -> Answer:
        self._configurations.read(trials)
        rungs: list[list[Evaluation]] = [[] for _ in self.levels.resources]
        for trial in trials:
            if "rung" in trial.notes:
                rungs[int(trial.notes["rung"])].append(trial)
        most = self.problem.max_trials
        room = count if most is None else min(count, max(0, most - len(trials)))
        # From the top: who is nearest to the whole resource comes first.
        promotions = [
            self._suggestion(index + 1, trial.place, trial.number)
            for index in reversed(range(len(rungs) - 1))
            for trial in self._promotable(rungs[index], rungs[index + 1])
        ]
        suggestions = promotions[:room]
        while len(suggestions) < room:
            place = self._configurations.draw(len(trials) + len(suggestions) + 1)
            if place is None:
                break
            suggestions.append(self._suggestion(0, place))
        is_waiting = any(trial.state is TrialState.PENDING for rung in rungs[:-1] for trial in rung)
        # What is suggested now may be promoted later, unless the limit is reached.
        is_over = room < count or not (is_waiting or suggestions)
        return Answer(suggestions, is_exhausted=len(suggestions) < count and is_over)

    def _promotable(self, rung: Sequence[Evaluation], above: Sequence[Evaluation]) -> list[Evaluation]:
        done = sum(trial.state is not TrialState.PENDING for trial in rung)
        promoted = {int(trial.notes["parent"]) for trial in above}
        return [trial for trial in best_of(rung, self.levels.kept(done)) if trial.number not in promoted]

    def _suggestion(self, rung: int, place: Place, parent: int | None = None) -> Suggestion:
        notes = {"rung": rung, "resource": self.levels.resources[rung]}
        return Suggestion(place, notes if parent is None else {**notes, "parent": parent})
