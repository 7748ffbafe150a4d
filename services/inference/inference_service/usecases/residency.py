"""What is in Triton's memory: loaded when it is asked for, unloaded when nobody asks."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from servicekit.errors import Code, ServiceError

from inference_service.domain.models import InferenceModel, ModelState, ModelVersion
from inference_service.usecases.fail_version import FailVersion
from inference_service.usecases.load_faults import LoadFaults
from inference_service.usecases.load_turns import LoadTurns
from inference_service.usecases.ports import (
    InferenceModels,
    LoadRefusedError,
    LoadTimedOutError,
    ModelServer,
    Repository,
    ServerAwayError,
    ServerEndedError,
)

log = logging.getLogger(__name__)

# A model that takes Triton down with it, or fails as nobody foresaw, must not do so for ever.
MAX_CRASHES = 5
MAX_SURPRISES = 5
# What served before is not given up; it costs everybody else a restart of Triton each time.
CRASH_PAUSE_SECONDS = 300.0
# Who was admitted is remembered for a second, and a request takes its time: what was used a moment ago stays.
RECENT_SECONDS = 2.0
ROOM_SECONDS = 10.0
ROOM_POLL_SECONDS = 0.1
BLAMED = re.compile(r"version (\d+) is at UNAVAILABLE state")


class NoRoomError(Exception):
    """All that is in memory has to stay."""


@dataclass(frozen=True)
class MemoryLimits:
    """How long an idle model stays (0: for ever), and how many versions stay at most (0: any number)."""

    idle_seconds: float = 900.0
    max_loaded: int = 0


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
        self._tasks: dict[str, asyncio.Task[str]] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._faults = LoadFaults(clock)
        self._turns = LoadTurns(limits.max_loaded, self._faults.is_suspect)
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
        """These and no others must not be unloaded, and predictions may ask them."""
        held = frozenset(names)
        if held != self._held:
            self._held = held
            self._changed()

    def is_due(self, name: str) -> bool:
        """Whether it may be tried again after Triton refused it."""
        return self._faults.is_due(name)

    def lacks(self, model: InferenceModel) -> str:
        """Why a prediction cannot ask it now, nothing when it can, which counts as a use."""
        if model.name not in self._held:
            return "waits for its place in memory: predictions of one user hold half of the places at most"
        self.use(model.name)
        if self.serves(model):
            return ""
        reason = self._faults.reason(model.name)
        return f"cannot be loaded now: {reason}" if reason else "is being loaded"

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
            task.add_done_callback(lambda _: self._ended(name))
        return task

    async def ensure(self, model: InferenceModel, seconds: float) -> None:
        """Return when it is in memory; 503 with the reason when that cannot be, or not within `seconds`."""
        self.use(model.name)
        if self.serves(model):
            return
        if not self.is_loading(model.name) and not self.is_due(model.name):
            raise _unavailable(model, self._faults.reason(model.name), 5)
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
        self._dead[name] = self._dead.get(name, frozenset()) | numbers
        self.start(name)

    async def unload(self, name: str) -> None:
        """Take it out of memory; what it is answering is answered. ServerAwayError."""
        async with self._locks[name]:
            await self._take_out(name)

    async def drop(self, name: str) -> None:
        """Unload what is deleted, also in the middle of its load. ServerAwayError."""
        if name in self._tasks:
            await self._cancel(name)
            model = await self._models.find(name)
            await self._end_load(name, [version.number for version in model.versions] if model else [])
        await self.unload(name)
        self._used.pop(name, None)
        self._faults.forget(name)
        self._dead.pop(name, None)

    async def close(self) -> None:
        """End all loads: Triton goes on with them, and the next process asks what became of them."""
        for name in list(self._tasks):
            await self._cancel(name)

    async def _take_out(self, name: str) -> None:
        self._note({key: value for key, value in self._loaded.items() if key != name})
        self.wanted.discard(name)
        self._unloading.add(name)
        try:
            await self._server.unload(name)
        finally:
            self._unloading.discard(name)
            # What was asked for meanwhile and has not been answered yet is old.
            self._changes += 1

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
        self._changed()

    def _note(self, loaded: dict[str, frozenset[int]]) -> None:
        self._loaded = loaded
        self._changes += 1

    async def _attempt(self, name: str) -> str:
        try:
            async with self._locks[name]:
                model = await self._models.find(name)
                if model is None:
                    return "it was deleted"
                count = max(1, len(_numbers(model)))
                async with self._turns.turn(name, model.owner, count):
                    return await self._load(name)
        except (NoRoomError, ServerAwayError) as error:
            return str(error)
        except Exception as error:
            log.exception("cannot load %s", name)
            reason = f"it cannot be loaded: {error}"
            self._faults.pause(name, reason)
            await self._note_surprise(name, reason)
            return reason

    async def _load(self, name: str) -> str:
        model = await self._models.find(name)
        while model is not None and (numbers := _numbers(model)):
            candidate = _candidate(model)
            # Only who goes away after it was there has been taken down.
            await self._server.loaded()
            try:
                await self._make_room(name, len(numbers))
            except NoRoomError as error:
                self._faults.postpone(name, str(error))
                if candidate is not None:
                    await self._models.note_waiting(model.uid, candidate.number, str(error))
                raise
            try:
                await self._serve(model, candidate, numbers)
            except LoadRefusedError as error:
                self._faults.acquit(name)
                if isinstance(error, LoadTimedOutError):
                    await self._end_load(name, numbers)
                if candidate is None or _blames_another(str(error), candidate, numbers):
                    self._faults.pause(name, f"Triton refuses it: {error}")
                    return self._faults.reason(name)
                await self._give_up(model, candidate, f"Triton cannot serve it: {error}")
            except ServerEndedError as error:
                await self._count_crash(model, candidate, error)
                raise
            else:
                self._faults.forget(name)
                return ""
            model = await self._models.find(name)
        self._faults.acquit(name)
        if name in await self._server.loaded():
            # What failed its probe is loaded nevertheless.
            await self._take_out(name)
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

    async def _count_crash(self, model: InferenceModel, candidate: ModelVersion | None, error: Exception) -> None:
        if self._faults.count_end(model.name) < MAX_CRASHES:
            return
        message = f"Triton ended {MAX_CRASHES} times while loading it: {error}"
        if candidate is None:
            self._faults.pause(model.name, message, CRASH_PAUSE_SECONDS)
            return
        self._faults.acquit(model.name)
        await self._give_up(model, candidate, message)

    async def _note_surprise(self, name: str, reason: str) -> None:
        try:
            model = await self._models.find(name)
            candidate = _candidate(model) if model else None
            if model is None or candidate is None:
                return
            is_there = candidate.number in await self._repository.versions(name)
            if not is_there or self._faults.count_surprise(name) >= MAX_SURPRISES:
                await self._give_up(model, candidate, reason)
            else:
                await self._models.note_waiting(model.uid, candidate.number, reason)
        except Exception:
            log.exception("cannot note why %s is not loaded", name)

    async def _give_up(self, model: InferenceModel, candidate: ModelVersion, message: str) -> None:
        """FAILED, unless it only has to be exported again."""
        if candidate.number in await self._repository.versions(model.name):
            await self._fail(model, candidate, message)
            return
        log.warning("the folder of %s, version %d, has gone; it is exported again", model.name, candidate.number)
        candidate.lost()
        await self._models.save_version(model.uid, candidate)

    async def _make_room(self, name: str, count: int) -> None:
        """NoRoomError when all that is in memory has to stay."""
        deadline = self.clock() + ROOM_SECONDS
        while not (fits := self._turns.claim(name, count)) or self._is_full(count):
            # In vain where it would not fit beside those that are being loaded.
            victim = self._least_used() if fits else None
            if victim is not None:
                log.info("%s makes room for %s", victim, name)
                await self.unload(victim)
            elif self.clock() > deadline:
                raise NoRoomError(
                    f"all {self.limits.max_loaded} places in Triton's memory are in use (DLMESH_MAX_LOADED_MODELS)"
                )
            else:
                await asyncio.sleep(ROOM_POLL_SECONDS)

    def _is_full(self, count: int) -> bool:
        return self.limits.max_loaded > 0 and self._taken(self._turns.claims) > max(self.limits.max_loaded, count)

    @property
    def room(self) -> float:
        """For how many versions there is room beside what is loaded and being loaded."""
        if not self.limits.max_loaded:
            return math.inf
        # Those that wait for their turn say then how many they are.
        waiting = {name: max(1, len(self._loaded.get(name, ()))) for name in self._tasks}
        return self.limits.max_loaded - self._taken(waiting | self._turns.claims)

    def _taken(self, claims: dict[str, int]) -> int:
        sizes = {name: len(versions) for name, versions in self._loaded.items()}
        return sum((sizes | claims).values())

    def _least_used(self) -> str | None:
        before = self.clock() - RECENT_SECONDS
        idle = [
            name
            for name in self._loaded
            if name not in self._held and name not in self._tasks and self._used.get(name, 0.0) < before
        ]
        return min(idle, key=lambda name: self._used.get(name, 0.0), default=None)


def _candidate(model: InferenceModel) -> ModelVersion | None:
    return next((each for each in model.versions if each.state is ModelState.LOADING), None)


def _numbers(model: InferenceModel) -> list[int]:
    """What is to be served: all that is READY, and one that shall be."""
    candidate = _candidate(model)
    return sorted({*model.ready_versions, *([candidate.number] if candidate else [])})


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
