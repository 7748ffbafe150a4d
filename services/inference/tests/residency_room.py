"""A residency with a played Triton, clock, rows and folders."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from inference_fakes import FakeCatalog, FakeServer
from inference_service.domain.models import InferenceModel, ModelState, ModelVersion
from inference_service.usecases.fail_version import FailVersion
from inference_service.usecases.residency import MemoryLimits, Residency
from inference_service.usecases.serve_models import ServeModels
from servicekit.errors import ServiceError
from triton_fixtures import make_model


class FakeModels:
    """`ports.InferenceModels` as far as the residency needs it."""

    def __init__(self) -> None:
        self.known: dict[str, InferenceModel] = {}

    def add(self, name: str, *states: ModelState, **changes: Any) -> InferenceModel:
        model = make_model(name, Path(), Path(), **changes)
        first = model.versions[0]
        model.versions = [
            replace(first, number=number, state=state) for number, state in enumerate(states or (ModelState.READY,), 1)
        ]
        self.known[name] = model
        return model

    async def all(self) -> list[InferenceModel]:
        return [model.copy() for model in self.known.values()]

    async def find(self, name: str) -> InferenceModel | None:
        return self.known[name].copy() if name in self.known else None

    async def save_version(self, uid: str, version: ModelVersion) -> None:
        [model] = [model for model in self.known.values() if model.uid == uid]
        stored = model.version(version.number)
        stored.state, stored.status_message = version.state, version.status_message

    async def note_waiting(self, uid: str, number: int, message: str) -> None:
        [model] = [model for model in self.known.values() if model.uid == uid]
        model.version(number).status_message = message

    async def note_used(self, uid: str, at: datetime) -> None:
        [model] = [model for model in self.known.values() if model.uid == uid]
        model.last_used_at = at


class FakePredictions:
    """Those that are active, by the names of their models."""

    def __init__(self) -> None:
        self.models: list[str] = []
        self.owners: dict[str, str] = {}
        self.accepted: set[str] = set()

    async def active(self) -> list[Any]:
        return [Held(name, self.owners.get(name, f"owner of {name}"), name in self.accepted) for name in self.models]


@dataclass(frozen=True)
class Held:
    model_name: str
    owner: str
    accepted: bool


class FakeFolders:
    """The repository: remembers what was offered and touched."""

    def __init__(self) -> None:
        self.offers: dict[str, Sequence[int]] = {}
        self.touched: list[tuple[str, Sequence[int]]] = []
        self.lost: set[int] = set()

    async def offer(self, name: str, numbers: Sequence[int]) -> None:
        self.offers[name] = numbers

    async def versions(self, name: str) -> set[int]:
        return set(range(1, 10)) - self.lost

    async def touch(self, name: str, numbers: Sequence[int]) -> None:
        self.touched.append((name, numbers))


class Room:
    def __init__(self, limits: MemoryLimits) -> None:
        self.now = 1000.0
        self.models, self.predictions = FakeModels(), FakePredictions()
        self.server, self.folders = FakeServer(), FakeFolders()
        self.server.offered = lambda name: frozenset(self.folders.offers[name])
        self.limits = limits
        self.start()

    def start(self) -> None:
        """A new process."""
        models: Any = self.models
        folders: Any = self.folders
        predictions: Any = self.predictions
        fail = FailVersion(models, FakeCatalog())
        self.residency = Residency(models, folders, self.server, fail, self.limits, clock=lambda: self.now)
        self.step = ServeModels(models, predictions, self.server, self.residency)

    async def ensure(self, name: str, seconds: float = 60) -> None:
        await self.residency.ensure(self.models.known[name].copy(), seconds)

    async def settle(self) -> None:
        """Passes of the loop, each with the loads that it starts, until one starts none."""
        for _ in range(100):
            before = len(self.server.loads)
            await self.step()
            while self.step.health.is_probing or any(map(self.residency.is_loading, self.models.known)):
                await asyncio.sleep(0)
            if len(self.server.loads) == before:
                return
        raise AssertionError("it never comes to rest")

    @property
    def loaded(self) -> Mapping[str, frozenset[int]]:
        return self.server.serving


async def refusal(call: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await call
    return caught.value
