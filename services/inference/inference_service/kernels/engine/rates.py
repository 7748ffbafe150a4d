"""How much came over the last seconds."""

from __future__ import annotations

from collections import deque

SECONDS = 10


class Rates:
    """Requests and bytes of the last SECONDS, a second."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int, int]] = deque(maxlen=SECONDS + 1)

    def count(self, size: int, now: float) -> None:
        """One came."""
        second, number, total = self._seconds.pop() if self._seconds else (int(now), 0, 0)
        if second != int(now):
            self._seconds.append((second, number, total))
            number = total = 0
        self._seconds.append((int(now), number + 1, total + size))

    def a_second(self, now: float) -> tuple[float, float]:
        """Requests and bytes."""
        recent = [entry for entry in self._seconds if entry[0] > int(now) - SECONDS]
        return sum(entry[1] for entry in recent) / SECONDS, sum(entry[2] for entry in recent) / SECONDS
