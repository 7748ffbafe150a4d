"""Fakes at this service's own ports, and objects to test with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from servicekit.errors import Code, ServiceError, invalid, not_found
from servicekit.jobs import InstanceGroup, JobFacts, JobRequest
from servicekit.times import utc_now
from training_service.domain.runs import Training, Validation
from training_service.usecases.ports import DatasetFacts, FrameworkFacts, ModelFacts, SettledHyperparameters

KNOWN = ("learningrate", "momentum", "epoch", "maxiteration", "solvertype", "nesterov")
GROUP = InstanceGroup(id="group-1", name="local", slots=2, master_url="local://here")
MODEL = ModelFacts(
    uid="model-1",
    name="digits",
    path="",
    owner="alice",
    framework="PyTorch",
    accelerator="Native",
    dataset="digits-data",
    batch_size=64,
    instance_group="local",
    hyperparameter={"solvertype": "Adam", "epoch": 2},
)
DATASET = DatasetFacts(
    name="digits-data",
    uid="dataset-1",
    status="FINISHED",
    content_hash="abc",
    splits={"train": "/d/train", "val": "/d/val", "test": "/d/test"},
    type="LMDB",
)


def away() -> ServiceError:
    return ServiceError(Code.UNAVAILABLE, "UNAVAILABLE", "the peer is away")


class FakeModels:
    def __init__(self, model: ModelFacts = MODEL) -> None:
        self.known = {model.name: model}
        self.programs: dict[str, str] = {}
        self.template_programs: dict[str, str] = {}

    async def get(self, name: str) -> ModelFacts:
        if name not in self.known:
            raise not_found("model", name)
        return self.known[name]

    async def frameworks(self) -> Sequence[FrameworkFacts]:
        return [FrameworkFacts("PyTorch", "PyTorch"), FrameworkFacts("Caffe", "Caffe")]

    async def program(self, name: str, file: str) -> str | None:
        return self.programs.get(f"{name}/{file}")

    async def template_program(self, name: str, file: str) -> str | None:
        return self.template_programs.get(f"{name}/{file}")

    async def settle(
        self,
        name: str,
        given: Mapping[str, Any],
        candidates: Mapping[str, Sequence[Any]],
        *,
        accelerator: str,
        field: str,
    ) -> SettledHyperparameters:
        """Knows the parameters of `KNOWN`; a negative value is wrong."""
        values = [*given.items(), *((parameter, value) for parameter in candidates for value in candidates[parameter])]
        for parameter, value in values:
            if parameter not in KNOWN:
                raise invalid(field, parameter, KNOWN)
            if isinstance(value, float | int) and value < 0:
                raise invalid(f"{field}.{parameter}", value, "0 or more")
        return SettledHyperparameters({**self.known[name].hyperparameter, **given}, KNOWN)

    async def uid_of(self, name: str) -> str | None:
        return self.known[name].uid if name in self.known else None


class FakeDatasets:
    def __init__(self, dataset: DatasetFacts = DATASET) -> None:
        self.known = {dataset.name: dataset}

    async def get(self, name: str) -> DatasetFacts:
        if name not in self.known:
            raise not_found("dataset", name)
        return self.known[name]


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
        self.group = GROUP

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
        self.facts.setdefault(request.job_id, JobFacts(request.job_id, "SUBMITTED", "waiting for 2 slots"))

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

    async def instance_group(self, field: str, name_or_id: str, *, named_by: str) -> InstanceGroup:
        if name_or_id not in (GROUP.id, GROUP.name):
            raise invalid(named_by, name_or_id, [GROUP.name])
        return self.group

    def move(self, job_id: str, state: str, **facts: Any) -> None:
        self.facts[job_id] = replace(self.facts[job_id], state=state, **facts)


def make_training(**changes: Any) -> Training:
    return Training(
        **{
            "uid": "t" * 32,
            "name": "first",
            "model_uid": MODEL.uid,
            "model_name": MODEL.name,
            "dataset_name": DATASET.name,
            "owner": "alice",
            "group": GROUP,
            "created_at": utc_now(),
            "job_id": "j" * 32,
            "dataset_uid": DATASET.uid,
            "dataset_hash": DATASET.content_hash,
            "data": dict(DATASET.splits),
            "hyperparameter": dict(MODEL.hyperparameter),
            "batch_size": 64,
            "framework": "PyTorch",
            "cluster_size": 2,
            **changes,
        }
    )


def make_validation(**changes: Any) -> Validation:
    return Validation(
        **{
            "uid": "v" * 32,
            "name": "check",
            "model_uid": MODEL.uid,
            "model_name": MODEL.name,
            "dataset_name": DATASET.name,
            "owner": "alice",
            "group": GROUP,
            "created_at": utc_now(),
            "job_id": "k" * 32,
            "training_uid": "t" * 32,
            "training_name": "first",
            "metrics": ["Top1"],
            "input_dir": "/d/test",
            **changes,
        }
    )
