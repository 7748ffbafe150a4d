"""What is in Triton's memory: loaded when it is asked for, unloaded when nobody asks."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from servicekit.errors import Code, ServiceError

from inference_service.domain.models import InferenceModel, ModelState, ModelVersion
from inference_service.usecases.fail_version import FailVersion
from inference_service.usecases.ports import (
    InferenceModels,
    LoadRefusedError,
    LoadTimedOutError,
    ModelServer,
    Repository,
    ServerAwayError,
)

log = logging.getLogger(__name__)

# A model that takes Triton down with it must not do so for ever.
MAX_CRASHES = 5
# As many as our Triton loads at a time. What loads for ever must not keep all others waiting: nobody has all of them.
LOADS_AT_ONCE = 8
LOADS_OF_AN_OWNER = 2
# Who was admitted is remembered for a second, and a request takes its time: what was used a moment ago stays.
RECENT_SECONDS = 2.0
ROOM_SECONDS = 10.0
ROOM_POLL_SECONDS = 0.1
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
BLAMED = re.compile(r"version (\d+) is at UNAVAILABLE state")


class NoRoomError(Exception):
    """All that is in memory has to stay."""


@dataclass(frozen=True)
class MemoryLimits:
    """How long an idle model stays (0: for ever), and how many versions stay at most (0: any number)."""

    idle_seconds: float = 900.0
    max_loaded: int = 0


@dataclass(frozen=True)
class Refusal:
    """How often in a row Triton refused what it had served before, and when it is asked again; 0: it was not asked."""

    count: int
    again_at: float
    reason: str


class Residency:
    """The only one that loads and unloads models; a load of a model is shared by all who wait for it.

    `changed` is called after each load that ended. Times are of `clock`.
    """

    def __init__(
        self,
        models: InferenceModels,
        repository: Repository,
        server: ModelServer,
        fail: FailVersion,
        limits: MemoryLimits,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models, self._repository, self._server = models, repository, server
        self._fail, self.limits, self._changed, self.clock = fail, limits, changed, clock
        self._loaded: dict[str, frozenset[int]] = {}
        self._changes = 0
        # What comes back when Triton is started anew: what was loaded and not unloaded.
        self.wanted: set[str] = set()
        self._used: dict[str, float] = {}
        self._held: frozenset[str] = frozenset()
        self._claims: dict[str, int] = {}
        self._tasks: dict[str, asyncio.Task[str]] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._turns = asyncio.Condition()
        self._running: Counter[str] = Counter()
        self._crashes: dict[str, int] = {}
        self._refusals: dict[str, Refusal] = {}
        self._dead: dict[str, frozenset[int]] = {}
        self._unloading: set[str] = set()

    @property
    def loaded(self) -> Mapping[str, frozenset[int]]:
        """Versions in memory by model, as last heard."""
        return self._loaded

    def serves(self, model: InferenceModel) -> bool:
        """Whether all that is READY of it is in memory."""
        ready = model.ready_versions
        return bool(ready) and self._loaded.get(model.name, frozenset()).issuperset(ready)

    def is_loading(self, name: str) -> bool:
        """Whether a load of it is under way."""
        return name in self._tasks

    def use(self, name: str, at: float | None = None) -> None:
        """It was asked for, now or at a time."""
        self._used[name] = max(self._used.get(name, 0.0), self.clock() if at is None else at)

    def used_at(self, name: str) -> float | None:
        """When it was asked for last, as far as this process knows."""
        return self._used.get(name)

    def hold(self, names: Iterable[str]) -> None:
        """These and no others must not be unloaded."""
        self._held = frozenset(names)

    def is_due(self, name: str) -> bool:
        """Whether it may be tried again after Triton refused it."""
        return name not in self._refusals or self.clock() >= self._refusals[name].again_at

    def lacks(self, model: InferenceModel) -> str:
        """Why it cannot be asked now, nothing when it can; counts as a use."""
        self.use(model.name)
        if self.serves(model):
            return ""
        refusal = self._refusals.get(model.name)
        return f"cannot be loaded now: {refusal.reason}" if refusal else "is being loaded"

    async def refresh(self) -> None:
        """Ask Triton what it serves; ServerAwayError."""
        changes = self._changes
        loaded = await self._server.loaded()
        if changes == self._changes:
            self._loaded = {name: numbers for name, numbers in loaded.items() if name not in self._unloading}
            self.wanted |= set(self._loaded)

    def forget(self) -> None:
        """Triton was started anew: nothing is loaded."""
        self._note({})

    def start(self, name: str) -> asyncio.Task[str]:
        """Load what it has to serve, unless that is under way; the result says why it is not loaded, or nothing."""
        task = self._tasks.get(name)
        if task is None:
            task = asyncio.create_task(self._attempt(name), name=f"load {name}")
            self._tasks[name] = task
            # At least; it says how many when it looks for room.
            self._claims[name] = max(1, len(self._loaded.get(name, ())))
            task.add_done_callback(lambda _: self._ended(name))
        return task

    async def ensure(self, model: InferenceModel, seconds: float) -> None:
        """Return when it is in memory; 503 with the reason when that cannot be, or not within `seconds`."""
        self.use(model.name)
        if self.serves(model):
            return
        if not self.is_loading(model.name) and not self.is_due(model.name):
            raise _unavailable(model, self._refusals[model.name].reason, 5)
        load = self.start(model.name)
        try:
            async with asyncio.timeout(seconds):
                reason = await asyncio.shield(load)
        except asyncio.CancelledError:
            if not load.cancelled():
                raise
            reason = "its load was ended"
        except TimeoutError:
            raise _unavailable(model, f"it is being loaded for more than {seconds:g} s", 5) from None
        if reason:
            raise _unavailable(model, reason, 1)

    def revive(self, name: str, numbers: frozenset[int]) -> None:
        """Load versions again that count as loaded although their processes are gone."""
        self._dead[name] = numbers
        self.start(name)

    async def unload(self, name: str) -> None:
        """Take it out of memory; what it is answering is answered. ServerAwayError."""
        async with self._locks[name]:
            self._note({key: value for key, value in self._loaded.items() if key != name})
            self.wanted.discard(name)
            self._unloading.add(name)
            try:
                await self._server.unload(name)
            finally:
                self._unloading.discard(name)
                # What was asked for meanwhile and has not been answered yet is old.
                self._changes += 1

    async def drop(self, name: str) -> None:
        """Unload what is deleted, also in the middle of its load. ServerAwayError."""
        if name in self._tasks:
            await self._cancel(name)
            model = await self._models.find(name)
            await self._end_load(name, [version.number for version in model.versions] if model else [])
        await self.unload(name)
        self._used.pop(name, None)
        self._refusals.pop(name, None)

    async def close(self) -> None:
        """End all loads: Triton goes on with them, and the next process asks what became of them."""
        for name in list(self._tasks):
            await self._cancel(name)

    async def _cancel(self, name: str) -> None:
        task = self._tasks[name]
        task.cancel()
        # Not awaited itself: that it was cancelled must not look as if this one were.
        await asyncio.wait([task])

    async def _end_load(self, name: str, numbers: Iterable[int]) -> None:
        """End what loads in vain: else it would keep others waiting."""
        loaded = (await self._server.loaded()).get(name, frozenset())
        await self._server.end(name, sorted(set(numbers) - loaded))

    def _ended(self, name: str) -> None:
        self._tasks.pop(name, None)
        self._claims.pop(name, None)
        self._changed()

    def _note(self, loaded: dict[str, frozenset[int]]) -> None:
        self._loaded = loaded
        self._changes += 1

    async def _attempt(self, name: str) -> str:
        try:
            model = await self._models.find(name)
            async with self._locks[name], self._turn(model.owner if model else ""):
                return await self._load(name)
        except (NoRoomError, ServerAwayError) as error:
            return str(error)
        except Exception as error:
            log.exception("cannot load %s", name)
            return f"it cannot be loaded: {error}"

    async def _load(self, name: str) -> str:
        model = await self._models.find(name)
        while model is not None:
            candidate = next((each for each in model.versions if each.state is ModelState.LOADING), None)
            numbers = sorted({*model.ready_versions, *([candidate.number] if candidate else [])})
            if not numbers:
                break
            # Only who goes away after it was there has been taken down.
            await self._server.loaded()
            try:
                await self._make_room(name, len(numbers))
            except NoRoomError as error:
                self._refusals[name] = Refusal(0, self.clock() + FIRST_PAUSE_SECONDS, str(error))
                if candidate is not None:
                    await self._models.note_waiting(model.uid, candidate.number, str(error))
                raise
            try:
                await self._serve(model, candidate, numbers)
            except LoadRefusedError as error:
                self._crashes.pop(name, None)
                if isinstance(error, LoadTimedOutError):
                    await self._end_load(name, numbers)
                if candidate is None or _blames_another(str(error), candidate, numbers):
                    self._pause(name, f"Triton refuses it: {error}")
                    return self._refusals[name].reason
                await self._fail(model, candidate, f"Triton cannot serve it: {error}")
            except ServerAwayError as error:
                await self._count_crash(model, [candidate.number] if candidate else numbers, error)
                raise
            else:
                self._crashes.pop(name, None)
                self._refusals.pop(name, None)
                return ""
            model = await self._models.find(name)
        self._crashes.pop(name, None)
        return "it has no version that can be loaded"

    async def _serve(self, model: InferenceModel, candidate: ModelVersion | None, numbers: list[int]) -> None:
        await self._repository.offer(model.name, numbers)
        if dead := self._dead.pop(model.name, frozenset()):
            await self._repository.touch(model.name, sorted(dead))
        await self._server.load(model.name)
        for number in [candidate.number] if candidate else numbers:
            await self._server.probe(model.name, number)
        self._note({**self._loaded, model.name: frozenset(numbers)})
        self.wanted.add(model.name)
        self.use(model.name)
        if candidate is not None:
            candidate.served()
            await self._models.save_version(model.uid, candidate)
        log.info("Triton serves %s, versions %s", model.name, numbers)

    async def _count_crash(self, model: InferenceModel, suspects: list[int], error: ServerAwayError) -> None:
        self._crashes[model.name] = self._crashes.get(model.name, 0) + 1
        if self._crashes[model.name] < MAX_CRASHES:
            return
        del self._crashes[model.name]
        for number in suspects:
            message = f"Triton ended {MAX_CRASHES} times while loading it: {error}"
            await self._fail(model, model.version(number), message)

    def _pause(self, name: str, reason: str) -> None:
        count = self._refusals[name].count + 1 if name in self._refusals else 1
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(count - 1, 10), LONGEST_PAUSE_SECONDS)
        self._refusals[name] = Refusal(count, self.clock() + pause, reason)

    @asynccontextmanager
    async def _turn(self, owner: str) -> AsyncIterator[None]:
        async with self._turns:
            await self._turns.wait_for(lambda: self._may_start(owner))
            self._running[owner] += 1
        try:
            yield
        finally:
            async with self._turns:
                self._running[owner] -= 1
                self._turns.notify_all()

    def _may_start(self, owner: str) -> bool:
        # While somebody takes Triton down, one at a time: else who it is would not be known.
        most = 1 if self._crashes else LOADS_AT_ONCE
        return self._running.total() < most and self._running[owner] < LOADS_OF_AN_OWNER

    async def _make_room(self, name: str, count: int) -> None:
        """NoRoomError when all that is in memory has to stay."""
        self._claims[name] = count
        deadline = self.clock() + ROOM_SECONDS
        while self.limits.max_loaded and self._taken() > max(self.limits.max_loaded, count):
            victim = self._least_used()
            if victim is not None:
                log.info("%s makes room for %s", victim, name)
                await self.unload(victim)
            elif self.clock() > deadline:
                raise NoRoomError(
                    f"all {self.limits.max_loaded} places in Triton's memory are in use (DLMESH_MAX_LOADED_MODELS)"
                )
            else:
                await asyncio.sleep(ROOM_POLL_SECONDS)

    @property
    def room(self) -> float:
        """For how many versions there is room beside what is loaded and being loaded."""
        return self.limits.max_loaded - self._taken() if self.limits.max_loaded else math.inf

    def _taken(self) -> int:
        sizes = {name: len(versions) for name, versions in self._loaded.items()}
        return sum((sizes | self._claims).values())

    def _least_used(self) -> str | None:
        before = self.clock() - RECENT_SECONDS
        idle = [
            name
            for name in self._loaded
            if name not in self._held and name not in self._tasks and self._used.get(name, 0.0) < before
        ]
        return min(idle, key=lambda name: self._used.get(name, 0.0), default=None)


def _blames_another(message: str, candidate: ModelVersion, numbers: list[int]) -> bool:
    blamed = {int(number) for number in BLAMED.findall(message)} & set(numbers)
    return bool(blamed) and candidate.number not in blamed


def _unavailable(model: InferenceModel, reason: str, retry_after_seconds: int) -> ServiceError:
    return ServiceError(
        Code.UNAVAILABLE,
        "NOT_READY",
        f"inference model {model.name!r} cannot answer now: {reason}",
        {"name": model.name, "reason": reason[:500]},
        retry_after_seconds=retry_after_seconds,
    )
