"""Hyperband: many configurations on little, the best of them on more (Li et al., JMLR 18, 2018).

A bracket begins with n configurations on a part of the resource; of each rung the best eta-th goes on to the next one,
which has eta times as much, until the last ones are given all of it. Brackets differ in how many they begin with.

Here a rung waits for all of its trials, but nobody waits for a rung: while there are free workers the next bracket
begins. After the last bracket comes the first again as long as `max_trials` allows. Without a limit the search ends
after each bracket has had its turn: more would be the same again, and somebody who wants that can say how much.

What is left for a bracket may be too little, of trials or of configurations. It is then the one with the most rungs
whose rules still hold (as many configurations as it takes for one to reach all of the resource), with as many
configurations as there is room for: cut off at the end instead, it would spend all on trials that say little, and none
on what is looked for.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from tuning_service.algorithms.base import Algorithm, Answer, Evaluation, Problem, Suggestion, TrialState
from tuning_service.algorithms.rungs import Configurations, Levels, best_of
from tuning_service.domain.space import Place


@dataclass(frozen=True)
class Shape:
    """A bracket's plan: its number of rungs, and of configurations in the first."""

    rungs: int
    configurations: int

    def sizes(self, levels: Levels) -> list[int]:
        """How many trials each rung has. One goes on in any case: somebody has to be given everything."""
        sizes = [self.configurations]
        while len(sizes) < self.rungs:
            sizes.append(max(1, levels.kept(sizes[-1])))
        return sizes


@dataclass
class _Bracket:
    """Where a bracket stands: which trials it can promote now, how many it can begin, and whether it is over, that is,
    whatever comes of its pending trials, has no further one."""

    shape: Shape
    rungs: list[list[Evaluation]]
    promotions: list[Evaluation]
    to_begin: int
    is_over: bool
    # Of all its trials, those to come as planned among them.
    trials: int


class Hyperband(Algorithm):
    """Every trial's notes say where it belongs (`bracket`, `rung`), the shape of its bracket (`rungs`,
    `configurations`), its `resource`, and the `parent` that it goes on from. Trials without such notes, which others
    suggested, are no part of any bracket, but count against the limit."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.levels = Levels.of(problem.settings)
        self._configurations = Configurations(problem)
        self._forget()

    def _forget(self) -> None:
        # The first brackets as far as they are over, which they stay; trials before the index are all theirs.
        self._over: list[_Bracket] = []
        self._start = self._known = 0

    def ask(self, trials: Sequence[Evaluation], count: int) -> Answer:
        self._configurations.read(trials)
        left = self._configurations.left
        brackets = self._brackets(trials)
        others = sum("bracket" not in trial.notes for trial in trials)
        suggestions: list[Suggestion] = []
        # The oldest first: what is begun comes to its end soon.
        for number in itertools.count():
            if len(suggestions) >= count:
                return Answer(suggestions)
            if number == len(brackets):
                shape = self._next_shape(brackets, left, others)
                if shape is None:
                    break
                brackets.append(self._state(shape, [[] for _ in range(shape.rungs)]))
            bracket = brackets[number]
            for parent in bracket.promotions[: count - len(suggestions)]:
                rung = int(parent.notes["rung"]) + 1
                suggestions.append(self._suggestion(number, bracket.shape, rung, parent.place, parent.number))
            for _ in range(min(bracket.to_begin, count - len(suggestions))):
                place = self._configurations.draw(len(trials) + len(suggestions) + 1)
                if place is not None:
                    suggestions.append(self._suggestion(number, bracket.shape, 0, place))
        return Answer(suggestions, is_exhausted=all(bracket.is_over for bracket in brackets))

    def _brackets(self, trials: Sequence[Evaluation]) -> list[_Bracket]:
        if len(trials) < self._known:
            self._forget()
        self._known = len(trials)
        found: dict[int, tuple[Shape, list[list[Evaluation]]]] = {}
        for trial in itertools.islice(trials, self._start, None):
            notes = trial.notes
            number = int(notes.get("bracket", -1))
            if number < len(self._over):
                continue
            if number not in found:
                shape = Shape(int(notes["rungs"]), int(notes["configurations"]))
                found[number] = shape, [[] for _ in range(shape.rungs)]
            found[number][1][int(notes["rung"])].append(trial)
        brackets = self._over + [self._state(*found[number]) for number in sorted(found)]
        for bracket in brackets[len(self._over) :]:
            if not bracket.is_over:
                break
            self._over.append(dataclasses.replace(bracket, rungs=[]))
        while self._start < len(trials) and trials[self._start].notes.get("bracket", -1) < len(self._over):
            self._start += 1
        return brackets

    def _state(self, shape: Shape, rungs: list[list[Evaluation]]) -> _Bracket:
        sizes = shape.sizes(self.levels)
        bracket = _Bracket(shape, rungs, [], 0, is_over=True, trials=sum(map(len, rungs)))
        # Configurations may have run out, when somebody else suggested some that were counted on.
        bracket.to_begin = sizes[0] - len(rungs[0]) if self._configurations.left != 0 else 0
        expected = len(rungs[0]) + bracket.to_begin
        for index, rung in enumerate(rungs):
            is_last = index == shape.rungs - 1
            if len(rung) < expected and index > 0:
                promoted = {int(trial.notes["parent"]) for trial in rung}
                best = best_of(rungs[index - 1], expected)
                bracket.promotions = [trial for trial in best if trial.number not in promoted]
            is_pending = any(trial.state is TrialState.PENDING for trial in rung)
            if len(rung) < expected or (is_pending and not is_last):
                bracket.is_over, bracket.trials = False, sum(sizes)
                break
            # What failed goes no further, nor does it hold up anybody.
            expected = 0 if is_last else min(sizes[index + 1], len(best_of(rung, len(rung))))
            if not expected:
                break
        return bracket

    def _suggestion(self, number: int, shape: Shape, rung: int, place: Place, parent: int | None = None) -> Suggestion:
        notes = {
            "bracket": number,
            "rung": rung,
            "rungs": shape.rungs,
            "configurations": shape.configurations,
            "resource": self.levels.resources[self.levels.deepest + 1 - shape.rungs + rung],
        }
        return Suggestion(place, notes if parent is None else {**notes, "parent": parent})

    def _next_shape(self, brackets: Sequence[_Bracket], left: int | None, others: int) -> Shape | None:
        """The bracket that comes behind these, `left` being how many configurations nobody has tried and `others` how
        many trials are of no bracket; None when there is none."""
        most = self.problem.max_trials
        turn = len(brackets) % len(self.levels.resources)
        if most is None and turn < len(brackets):
            return None
        trials = math.inf if most is None else most - others - sum(bracket.trials for bracket in brackets)
        configurations = math.inf if left is None else left - sum(bracket.to_begin for bracket in brackets)
        whole = self._whole(len(self.levels.resources) - turn)
        for rungs in range(whole.rungs, 0, -1):
            least = math.ceil(self.levels.eta ** (rungs - 1))
            fitting = self._most(rungs, range(least, whole.configurations + 1), configurations, trials)
            if fitting is not None:
                return Shape(rungs, fitting)
        return None

    def _whole(self, rungs: int) -> Shape:
        """The bracket of so many rungs when there is enough of everything."""
        share = Fraction(len(self.levels.resources), rungs)
        return Shape(rungs, math.ceil(share * self.levels.eta ** (rungs - 1)))

    def _most(self, rungs: int, numbers: range, configurations: float, trials: float) -> int | None:
        """The most configurations for whose bracket there is room; None when there is none for any of `numbers`."""

        def is_too_much(number: int) -> bool:
            return number > configurations or sum(Shape(rungs, number).sizes(self.levels)) > trials

        found = bisect.bisect_left(numbers, True, key=is_too_much)
        return numbers[found - 1] if found else None
