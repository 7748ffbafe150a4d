"""What became of loads that failed, and when each may be tried again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
# So long after an end of Triton nobody suspects any more who was being loaded then.
SUSPICION_SECONDS = 600.0


@dataclass(frozen=True)
class Refusal:
    """How often in a row it failed, when it is tried again, and why; 0: Triton was not asked."""

    count: int
    again_at: float
    reason: str


class LoadFaults:
    """By name of the model. Times are of `clock`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._refusals: dict[str, Refusal] = {}
        self._ends: dict[str, tuple[int, float]] = {}
        self._surprises: Counter[str] = Counter()

    def is_due(self, name: str) -> bool:
        """Whether it may be tried again."""
        return name not in self._refusals or self._clock() >= self._refusals[name].again_at

    def reason(self, name: str) -> str:
        """Why it was not loaded when it was tried last; empty when it was, or was not tried."""
        return self._refusals[name].reason if name in self._refusals else ""

    def pause(self, name: str, reason: str, least_seconds: float = 0.0) -> None:
        """It failed: try again later, each time in a row twice as long."""
        count = self._count(name) + 1
        seconds = min(FIRST_PAUSE_SECONDS * 2 ** min(count - 1, 10), LONGEST_PAUSE_SECONDS)
        self._refusals[name] = Refusal(count, self._clock() + max(seconds, least_seconds), reason)

    def postpone(self, name: str, reason: str) -> None:
        """It was not its fault: try again soon, and count on from there."""
        self._refusals[name] = Refusal(self._count(name), self._clock() + FIRST_PAUSE_SECONDS, reason)

    def count_end(self, name: str) -> int:
        """Triton ended while it was being loaded; how often it did."""
        count = self._ends[name][0] + 1 if self.is_suspect(name) else 1
        self._ends[name] = (count, self._clock() + SUSPICION_SECONDS)
        return count

    def is_suspect(self, name: str) -> bool:
        """Whether it may be what ends Triton."""
        return name in self._ends and self._clock() < self._ends[name][1]

    def count_surprise(self, name: str) -> int:
        """It failed as nobody foresaw; how often it did."""
        self._surprises[name] += 1
        return self._surprises[name]

    def acquit(self, name: str) -> None:
        """Triton outlived its load."""
        self._ends.pop(name, None)

    def forget(self, name: str) -> None:
        """All that was against it."""
        self._refusals.pop(name, None)
        self._surprises.pop(name, None)
        self.acquit(name)

    def _count(self, name: str) -> int:
        return self._refusals[name].count if name in self._refusals else 0
