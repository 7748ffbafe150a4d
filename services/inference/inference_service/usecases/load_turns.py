"""Which loads run at a time, and how many places in memory they claim."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

# As many as our Triton loads at a time. What loads for ever must not keep all others waiting: nobody has all of them.
LOADS_AT_ONCE = 8
LOADS_OF_AN_OWNER = 2


class LoadTurns:
    """A load that has its turn claims a place for each of its versions; all together never claim more than `places`
    (0: any number), but for one that needs more and is alone.

    What may have taken Triton down has its turn alone: else who it is would not be known.
    """

    def __init__(self, places: int, is_suspect: Callable[[str], bool]) -> None:
        self._places, self._is_suspect = places, is_suspect
        self._ended = asyncio.Condition()
        self._owners: dict[str, str] = {}
        self._claims: dict[str, int] = {}

    @property
    def claims(self) -> dict[str, int]:
        """Places by model, of the loads that have their turn."""
        return dict(self._claims)

    @asynccontextmanager
    async def turn(self, name: str, owner: str, count: int) -> AsyncIterator[None]:
        """Wait for the turn of a load of `count` versions, and have it."""
        async with self._ended:
            await self._ended.wait_for(lambda: self._may_start(name, owner, count))
            self._owners[name], self._claims[name] = owner, count
        try:
            yield
        finally:
            del self._owners[name], self._claims[name]
            async with self._ended:
                self._ended.notify_all()

    def claim(self, name: str, count: int) -> bool:
        """Claim so many places instead; False, and nothing, where that is too much together with the others."""
        if not self._fits(name, count):
            return False
        self._claims[name] = count
        return True

    def _fits(self, name: str, count: int) -> bool:
        others = sum(places for each, places in self._claims.items() if each != name)
        return not others or not self._places or others + count <= self._places

    def _may_start(self, name: str, owner: str, count: int) -> bool:
        if self._owners and (self._is_suspect(name) or any(map(self._is_suspect, self._owners))):
            return False
        of_owner = Counter(self._owners.values())[owner]
        return len(self._owners) < LOADS_AT_ONCE and of_owner < LOADS_OF_AN_OWNER and self._fits(name, count)
