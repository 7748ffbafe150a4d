"""Fakes at this service's own ports, and things to test with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets_service.domain.dataset import Dataset, InstanceGroup, JobFacts
from datasets_service.domain.request import ImageOptions, ImportOptions
from datasets_service.domain.words import Backend, ColorMode, SourceType
from datasets_service.usecases.ports import JobRequest
from PIL import Image
from servicekit.errors import Code, ServiceError, invalid, not_found
from servicekit.times import utc_now

GROUP = InstanceGroup(id="group-1", name="local", master_url="local://here")


def write_images(root: Path, counts: Mapping[str, int], *, size: tuple[int, int] = (8, 8), first: int = 0) -> Path:
    """A folder of gray PNGs for each label, every image different."""
    for label, count in counts.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
            pixels = np.random.default_rng([index, *label.encode()]).integers(0, 256, size[::-1], np.uint8)
            Image.fromarray(pixels).save(root / label / f"{index:04d}.png")
    return root


def make_dataset(**changes: Any) -> Dataset:
    return Dataset(
        **{
            "uid": "d" * 32,
            "name": "digits",
            "owner": "alice",
            "created_at": utc_now(),
            "job_id": "j" * 32,
            "group": GROUP,
            "source_type": SourceType.IMAGES_FOR_CLASSIFICATION,
            "backend": Backend.LMDB,
            "options": ImportOptions(
                images=ImageOptions(train_path="/data/digits", color_mode=ColorMode.GRAY, width=8, height=8)
            ),
            **changes,
        }
    )


class FakeModels:
    def __init__(self) -> None:
        self.by_dataset: dict[str, list[str]] = {}

    async def naming(self, dataset: str) -> list[str]:
        return self.by_dataset.get(dataset, [])


class FakeJobs:
    """A scheduling service whose jobs only move when a test says so."""

    def __init__(self) -> None:
        self.requests: dict[str, JobRequest] = {}
        self.facts: dict[str, JobFacts] = {}
        self.stopped: list[str] = []
        self.deleted: list[str] = []
        self.refusal: ServiceError | None = None
        self.is_away = False
        self.unanswered = 0

    def _answer(self) -> None:
        if self.is_away:
            self.unanswered += 1
            raise ServiceError(Code.UNAVAILABLE, "UNAVAILABLE", "the peer is away")

    async def submit(self, request: JobRequest) -> None:
        self._answer()
        if self.refusal:
            raise self.refusal
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
        if name_or_id not in (GROUP.id, GROUP.name):
            raise invalid(field, name_or_id, [GROUP.name])
        return GROUP

    def move(self, job_id: str, state: str, **facts: Any) -> None:
        self.facts[job_id] = replace(self.facts[job_id], state=state, **facts)
