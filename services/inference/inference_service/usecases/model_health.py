"""Find what counts as loaded and does not answer, without asking those that do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from inference_service.domain.models import InferenceModel
from inference_service.usecases.ports import ModelServer, ServerAwayError
from inference_service.usecases.residency import Residency

log = logging.getLogger(__name__)

# A process that has gone is back so much later, and its load.
LOOK_SECONDS = 1.0
# Seen asked for so long without one answer, and three probes in a row unanswered: it hangs in what somebody asked.
# Large batches on a small machine take minutes.
STUCK_SECONDS = 300.0
MAX_SILENCES = 3

Pair = tuple[str, int]


class ModelHealth:
    """Looks now and then, probes in the background whoever is under suspicion, and has the dead loaded again.

    Suspects: versions without a process, where processes can be seen; those that failed requests since the last look;
    those that were asked and have answered nobody for `STUCK_SECONDS`, which end in the end.
    """

    def __init__(self, server: ModelServer, residency: Residency, unix_time: Callable[[], float] = time.time) -> None:
        self._server, self._residency, self._unix_time = server, residency, unix_time
        self._looked_at = time.monotonic()
        self._failures: dict[Pair, int] = {}
        # When it was first seen asked since its last answer, and when that was.
        self._unanswered: dict[Pair, tuple[float, float]] = {}
        self._silences: Counter[Pair] = Counter()
        self._probes: asyncio.Task[None] | None = None

    @property
    def is_probing(self) -> bool:
        """Whether somebody is being asked."""
        return self._probes is not None and not self._probes.done()

    async def look(self, models: Sequence[InferenceModel]) -> None:
        """When it is time: learn what was used behind our back, and start to probe suspects. ServerAwayError."""
        if time.monotonic() - self._looked_at < LOOK_SECONDS or self.is_probing:
            return
        self._looked_at = time.monotonic()
        loaded = {
            (model.name, number)
            for model in models
            if self._residency.serves(model) and not self._residency.is_loading(model.name)
            for number in model.ready_versions
        }
        failing, stuck = await self._learn()
        running = self._server.processes()
        failing |= loaded - set(running) if running is not None else set()
        self._silences = Counter({pair: count for pair, count in self._silences.items() if pair in stuck})
        if suspects := (failing | stuck) & loaded:
            self._probes = asyncio.create_task(self._probe(sorted(suspects), stuck), name="probes of models")

    async def close(self) -> None:
        """Ask no more."""
        if self._probes is not None:
            self._probes.cancel()
            await asyncio.wait([self._probes])

    async def _learn(self) -> tuple[set[Pair], set[Pair]]:
        failing: set[Pair] = set()
        stuck: set[Pair] = set()
        unanswered: dict[Pair, tuple[float, float]] = {}
        now, clock = self._unix_time(), self._residency.clock()
        for pair, activity in (await self._server.activity()).items():
            if activity.failures > self._failures.get(pair, 0):
                failing.add(pair)
            self._failures[pair] = activity.failures
            if not activity.last_inference_at:
                continue
            silent_seconds = max(now - activity.last_inference_at, 0.0)
            self._residency.use(pair[0], clock - silent_seconds)
            asked = self._residency.used_at(pair[0]) or 0.0
            if asked <= clock - silent_seconds + 1:
                continue
            seen = self._unanswered.get(pair)
            if seen is None or seen[1] != activity.last_inference_at:
                # How long it was idle before says nothing.
                seen = (clock, activity.last_inference_at)
            unanswered[pair] = seen
            if clock - seen[0] > STUCK_SECONDS:
                stuck.add(pair)
        self._unanswered = unanswered
        return failing, stuck

    async def _probe(self, suspects: Sequence[Pair], stuck: set[Pair]) -> None:
        try:
            await asyncio.gather(*(self._ask(name, number, (name, number) in stuck) for name, number in suspects))
        except ServerAwayError as error:
            log.info("models are not probed: %s", error)

    async def _ask(self, name: str, number: int, is_stuck: bool) -> None:
        answers = await self._server.answers(name, number)
        if answers is False:
            log.warning("the process of %s, version %d, has gone; it is loaded again", name, number)
            self._residency.revive(name, frozenset({number}))
        if answers is not None or not is_stuck:
            self._silences.pop((name, number), None)
            return
        self._silences[name, number] += 1
        if self._silences[name, number] >= MAX_SILENCES:
            log.warning("%s, version %d, has answered nobody for %g s; it is ended", name, number, STUCK_SECONDS)
            await self._server.end(name, [number])
