"""What a search algorithm is asked, and what it may answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from tuning_service.domain.evaluation import Answer, Evaluation, Known, Problem, Suggestion, TrialState

__all__ = ["Algorithm", "Answer", "Evaluation", "Known", "Problem", "Suggestion", "TrialState"]


class Algorithm(ABC):
    """Searches one study. Everything it knows comes from the trials that it is shown, so that one made anew after a
    restart answers as the old one would have: what an object keeps between asks may save time, nothing else."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        # Whether the answer is waited for: set by whoever does.
        self.is_late: Callable[[], bool] = lambda: False

    @abstractmethod
    def ask(self, trials: Sequence[Evaluation], count: int) -> Answer:
        """Up to `count` trials to run next.

        `trials` are all that were suggested so far, in order of their numbers, which begin with 1 and have no gaps.
        Trials pending at the moment are among them: what is suggested shall differ from those. Trials end in any order,
        and one that has ended never changes again. Places that would repeat an earlier trial are allowed only where the
        algorithm means it (the next rung of Hyperband). An exception fails the study, with its text.

        One that thinks about each suggestion looks at `is_late` after each, and answers with those that it has: whoever
        asks for the others next, with these pending, gets what one ask would have had.
        """
