"""Keep in Triton's memory what is used: new versions, what predictions need, what was used lately; no more."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import timedelta

from servicekit.reconcile import Next
from servicekit.times import utc_now

from inference_service.domain.models import InferenceModel, ModelState, ModelVersion
from inference_service.domain.predictions import Prediction
from inference_service.usecases.load_turns import LOADS_OF_AN_OWNER
from inference_service.usecases.model_health import ModelHealth
from inference_service.usecases.ports import InferenceModels, ModelServer, Predictions, ServerAwayError
from inference_service.usecases.residency import Residency

log = logging.getLogger(__name__)

# How far what is stored of the last use may be behind.
NOTE_SECONDS = 30.0
# The others are for requests that wait.
BACKGROUND_LOADS = 4


class ServeModels:
    """One pass over the models; starts loads and does not wait for them. Safe to be killed anywhere and to repeat."""

    def __init__(
        self,
        models: InferenceModels,
        predictions: Predictions,
        server: ModelServer,
        residency: Residency,
    ) -> None:
        self._models, self._predictions = models, predictions
        self._residency = residency
        self._is_first = True
        self.health = ModelHealth(server, residency)

    async def __call__(self) -> Next:
        models = [model for model in await self._models.all() if model.state is not ModelState.FAILED]
        if self._is_first:
            self._recall(models)
            self._is_first = False
        held = self._held(models, await self._predictions.active())
        self._residency.hold(held)
        try:
            await self._residency.refresh()
            await self.health.look(models)
            await self._unload_idle(models, held)
        except ServerAwayError as error:
            await self._say(models, str(error))
        else:
            self._load(models, held)
        await self._note_uses(models)
        wanted = [model for model in models if self._wants(model, held)]
        is_settled = all(self._residency.serves(model) and _new(model) is None for model in wanted)
        return Next.LATER if is_settled else Next.SOON

    def _held(self, models: Sequence[InferenceModel], active: Sequence[Prediction]) -> set[str]:
        """Models that predictions need: all whose jobs there are, and of those that wait as many as fit into the share
        of their owner, half of the places; one always."""
        share = self._residency.limits.max_loaded / 2 or math.inf
        sizes = {model.name: max(1, len(model.ready_versions)) for model in models}
        of_owner: defaultdict[str, set[str]] = defaultdict(set)
        for prediction in sorted(active, key=lambda each: not each.accepted):
            names, name = of_owner[prediction.owner], prediction.model_name
            places = sum(sizes.get(each, 1) for each in names | {name})
            if prediction.accepted or not names or places <= share:
                names.add(name)
        return set().union(*of_owner.values())

    def _recall(self, models: Sequence[InferenceModel]) -> None:
        """What was used before this process was started, as if it had seen it."""
        now, clock = utc_now(), self._residency.clock()
        for model in models:
            if model.last_used_at is not None:
                self._residency.use(model.name, clock - max((now - model.last_used_at).total_seconds(), 0.0))
                self._residency.wanted.add(model.name)

    def _wants(self, model: InferenceModel, held: set[str]) -> bool:
        return model.name in held or model.name in self._residency.wanted or _new(model) is not None

    def _is_idle(self, name: str) -> bool:
        idle, used = self._residency.limits.idle_seconds, self._residency.used_at(name)
        return used is None or (idle > 0 and self._residency.clock() - used > idle)

    def _load(self, models: Sequence[InferenceModel], held: set[str]) -> None:
        residency = self._residency
        running = Counter(model.owner for model in models if residency.is_loading(model.name))
        for model in sorted(models, key=lambda each: self._urgency(each, held)):
            version, name = _new(model), model.name
            if running.total() >= BACKGROUND_LOADS:
                return
            if running[model.owner] >= LOADS_OF_AN_OWNER:
                continue
            has_gone = residency.loaded.get(name, frozenset()) - set(_offered(model))
            if residency.is_loading(name) or not residency.is_due(name):
                continue
            if version is None and not has_gone and (residency.serves(model) or not self._wants(model, held)):
                continue
            if version is None and name not in held and not has_gone and len(model.ready_versions) > residency.room:
                # Lately used ones fill what is free; they drive nobody out.
                self._residency.wanted.discard(name)
                continue
            residency.start(name)
            running[model.owner] += 1

    def _urgency(self, model: InferenceModel, held: set[str]) -> tuple[bool, bool, float]:
        return (_new(model) is None, model.name not in held, -(self._residency.used_at(model.name) or 0.0))

    async def _unload_idle(self, models: Sequence[InferenceModel], held: set[str]) -> None:
        known = {model.name for model in models}
        for name in list(self._residency.wanted | set(self._residency.loaded)):
            if self._residency.is_loading(name):
                continue
            if name not in known:
                await self._unload_dead(name)
                continue
            if name in held or not self._is_idle(name):
                continue
            self._residency.wanted.discard(name)
            if name in self._residency.loaded:
                log.info("%s was not used for %g s; it is unloaded", name, self._residency.limits.idle_seconds)
                await self._residency.unload(name)

    async def _unload_dead(self, name: str) -> None:
        """What nothing is left of to serve: it failed, or was deleted while Triton was away."""
        model = await self._models.find(name)
        if (model is None or model.state is ModelState.FAILED) and not self._residency.is_loading(name):
            self._residency.wanted.discard(name)
            if name in self._residency.loaded:
                log.info("nothing of %s can be served; it is unloaded", name)
                await self._residency.unload(name)

    async def _say(self, models: Sequence[InferenceModel], reason: str) -> None:
        for model in models:
            version = _new(model)
            if version is not None and version.status_message != reason:
                await self._models.note_waiting(model.uid, version.number, reason)

    async def _note_uses(self, models: Sequence[InferenceModel]) -> None:
        now, clock = utc_now(), self._residency.clock()
        for model in models:
            used = self._residency.used_at(model.name)
            if used is None:
                continue
            at = now - timedelta(seconds=clock - used)
            if model.last_used_at is None or (at - model.last_used_at).total_seconds() > NOTE_SECONDS:
                await self._models.note_used(model.uid, at)


def _new(model: InferenceModel) -> ModelVersion | None:
    return next((version for version in model.versions if version.state is ModelState.LOADING), None)


def _offered(model: InferenceModel) -> list[int]:
    return [each.number for each in model.versions if each.state in (ModelState.READY, ModelState.LOADING)]
