"""Fakes at this service's own ports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from inference_service.domain.models import InferenceModel, TritonUnavailableError
from inference_service.usecases.ports import (
    Activity,
    LoadRefusedError,
    LoadTimedOutError,
    ModelFacts,
    ServerAwayError,
    ServerEndedError,
    TrainingFacts,
)
from servicekit.errors import Code, ServiceError, already_exists, invalid, not_found
from servicekit.identity import current_identity
from servicekit.jobs import InstanceGroup, JobFacts, JobRequest

GROUP = InstanceGroup("group-1", "local", "local://here")
OTHER_GROUP = InstanceGroup("group-2", "big", "local://there")


def away() -> ServiceError:
    return ServiceError(Code.UNAVAILABLE, "UNAVAILABLE", "the peer is away")


class FakeCatalog:
    """The models service."""

    def __init__(self) -> None:
        self.known: dict[str, ModelFacts] = {}
        self.descriptions: dict[str, str] = {}
        # True: goes away after the first question of a create request.
        self.lists_nothing = False
        self.count = 0

    def add(self, name: str, owner: str = "alice", **facts: Any) -> None:
        self.count += 1
        values = {
            "uid": f"model-{self.count}",
            "name": name,
            "owner": owner,
            "type": "Training",
            "path": "",
            "template_name": "template",
            "framework": "PyTorch",
            "dataset": "data",
            "instance_group": "local",
        }
        self.known[name] = ModelFacts(**(values | facts))

    async def get(self, name: str) -> ModelFacts:
        if name not in self.known:
            raise not_found("model", name)
        current_identity().require_access("model", name, self.known[name].owner)
        return self.known[name]

    async def find(self, name: str) -> ModelFacts | None:
        if self.lists_nothing:
            raise away()
        return self.known.get(name)

    async def create_inference(self, model: InferenceModel, description: str) -> None:
        if model.name in self.known:
            raise already_exists("model", model.name)
        owner = current_identity().user
        self.add(model.name, owner, type="Inference", weights_folder=model.versions[0].checkpoints_path)
        self.descriptions[model.name] = description

    async def describe(self, name: str, description: str) -> None:
        self.descriptions[name] = description


class FakeTrainings:
    """The training service."""

    def __init__(self, code_path: str, checkpoints_path: str) -> None:
        self.training = TrainingFacts("t1", "first", "FINISHED", code_path, checkpoints_path)

    async def get(self, model_name: str, name: str) -> TrainingFacts:
        if name != self.training.name:
            raise not_found("training", name)
        return self.training


class FakeJobs:
    """A scheduling service whose jobs only move when a test says so."""

    def __init__(self) -> None:
        self.requests: dict[str, JobRequest] = {}
        self.facts: dict[str, JobFacts] = {}
        self.submissions = 0
        self.stopped: list[str] = []
        self.deleted: list[str] = []
        self.refusal: ServiceError | None = None
        self.is_away = False
        self.unanswered = 0

    def _answer(self) -> None:
        if self.is_away:
            self.unanswered += 1
            raise away()

    async def submit(self, request: JobRequest) -> None:
        self._answer()
        if self.refusal:
            raise self.refusal
        self.submissions += 1
        self.requests[request.job_id] = request
        self.facts.setdefault(request.job_id, JobFacts(request.job_id, "SUBMITTED", "waiting for a slot"))

    async def get(self, job_ids: Sequence[str]) -> Mapping[str, JobFacts]:
        self._answer()
        return {job_id: self.facts[job_id] for job_id in job_ids if job_id in self.facts}

    async def stop(self, job_id: str) -> None:
        self._answer()
        if job_id not in self.facts:
            raise not_found("job", job_id)
        self.stopped.append(job_id)

    async def delete(self, job_id: str) -> None:
        self._answer()
        self.deleted.append(job_id)

    async def instance_group(self, field: str, name_or_id: str) -> InstanceGroup:
        for group in (GROUP, OTHER_GROUP):
            if name_or_id in (group.id, group.name):
                return group
        raise invalid(field, name_or_id, [GROUP.name, OTHER_GROUP.name])

    def move(self, job_id: str, state: str, **facts: Any) -> None:
        self.facts[job_id] = replace(self.facts[job_id], state=state, **facts)


class FakeServer:
    """A Triton that serves what it is told to: of each model the versions that `offered` gives."""

    def __init__(self) -> None:
        self.serving: dict[str, frozenset[int]] = {}
        self.offered: Callable[[str], frozenset[int]] = lambda name: frozenset({1})
        self.dead: set[str] = set()
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.ended: list[tuple[str | int, ...]] = []
        self.silent: set[str] = set()
        self.is_late = False
        self.used: dict[str, float] = {}
        self.is_away = False
        self.refusal = ""
        self.dies_on_load = False
        self.missing = ""
        # A load waits until it is set.
        self.may_load = asyncio.Event()
        self.may_load.set()

    def require(self) -> None:
        if self.missing:
            raise TritonUnavailableError(self.missing)

    def _answer(self) -> None:
        if self.is_away:
            raise ServerAwayError("Triton does not answer")

    async def loaded(self) -> Mapping[str, frozenset[int]]:
        self._answer()
        return dict(self.serving)

    async def activity(self) -> Mapping[tuple[str, int], Activity]:
        self._answer()
        return {
            (name, number): Activity(self.used.get(name, 0.0), int(name in self.dead))
            for name, versions in self.serving.items()
            for number in versions
        }

    async def load(self, name: str) -> None:
        self._answer()
        self.loads.append(name)
        await self.may_load.wait()
        if self.dies_on_load:
            raise ServerEndedError("Socket closed")
        if self.is_late:
            raise LoadTimedOutError("it was not loaded within 1 s")
        if self.refusal:
            raise LoadRefusedError(self.refusal)
        self.serving[name] = self.offered(name)
        self.dead.discard(name)

    async def end(self, name: str, versions: Sequence[int]) -> None:
        self.ended.append((name, *versions))
        self.silent.discard(name)
        self.dead.add(name)

    async def unload(self, name: str) -> None:
        self._answer()
        self.unloads.append(name)
        self.serving.pop(name, None)

    async def probe(self, name: str, version: int) -> None:
        self._answer()
        if version not in self.serving.get(name, ()):
            raise LoadRefusedError(f"{name} {version} is not loaded")

    def processes(self) -> None:
        return None

    async def answers(self, name: str, version: int) -> bool | None:
        self._answer()
        return None if name in self.silent else name not in self.dead
