"""Start a training: check the request, freeze the facts it starts from, write one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from servicekit.errors import Code, ServiceError, invalid, not_built
from servicekit.identity import current_identity
from servicekit.names import check_name
from servicekit.times import utc_now

from training_service.domain.runs import FRAMEWORKS, Training
from training_service.usecases.ports import DatasetFacts, Datasets, InitialWeights, Jobs, ModelFacts, Models, Trainings

DEFAULT_BATCH_SIZE = 32
DEFAULT_TEST_INTERVAL = 100
DEFAULT_TEST_ITERATION = 10


@dataclass(frozen=True)
class TrainingRequest:
    """The body of a start request; empty text and 0 mean that a field was not given."""

    name: str
    framework: str
    cluster_size: int
    command: str = ""
    weights_url: str = ""
    weights_file: str = ""
    weights_folder: str = ""
    gpu_ratio: int = 0
    test_interval: int = 0
    test_iteration: int = 0
    sync_mode: str = ""


class StartTraining:
    """Callable with a model's name and a request; returns the stored training."""

    def __init__(
        self,
        trainings: Trainings,
        models: Models,
        datasets: Datasets,
        jobs: Jobs,
        weights: InitialWeights,
        wake: Callable[[], None],
    ) -> None:
        self._trainings = trainings
        self._models, self._datasets, self._jobs = models, datasets, jobs
        self._weights, self._wake = weights, wake

    async def __call__(self, model_name: str, request: TrainingRequest) -> Training:
        model = await self._models.get(model_name)
        framework = _check_request(request)
        _check_model(model, request, framework)
        owner = current_identity().user
        weights_file = self._weights.resolve("wfinit", request.weights_file, owner, is_folder=False)
        weights_folder = self._weights.resolve("wtfolder", request.weights_folder, owner, is_folder=True)
        dataset = await self._finished_dataset(model)
        group = await self._jobs.instance_group("sigid", model.instance_group, named_by="sig of the model")
        if request.cluster_size > group.slots:
            raise invalid("clusterSize", request.cluster_size, f"1 to {group.slots}, the slots of {group.name}")
        given = bool(weights_file or weights_folder)
        training = Training(
            uid=uuid4().hex,
            name=request.name,
            model_uid=model.uid,
            model_name=model.name,
            dataset_name=dataset.name,
            owner=owner,
            group=group,
            created_at=utc_now(),
            job_id=uuid4().hex,
            dataset_uid=dataset.uid,
            dataset_hash=dataset.content_hash,
            data=dict(dataset.splits),
            hyperparameter=dict(model.hyperparameter),
            batch_size=model.batch_size or DEFAULT_BATCH_SIZE,
            framework=framework,
            cluster_size=request.cluster_size,
            gpu_ratio=request.gpu_ratio,
            test_interval=request.test_interval or DEFAULT_TEST_INTERVAL,
            test_iteration=request.test_iteration or DEFAULT_TEST_ITERATION,
            sync_mode="SYNC",
            weights_file=weights_file if given else model.weights_file,
            weights_folder=weights_folder if given else model.weights_folder,
            model_path=model.path,
        )
        await self._trainings.add(training)
        self._wake()
        return training

    async def _finished_dataset(self, model: ModelFacts) -> DatasetFacts:
        if not model.dataset:
            raise invalid("dataset", "", f"a dataset; model {model.name!r} names none, set it first")
        try:
            dataset = await self._datasets.get(model.dataset)
        except ServiceError as error:
            if error.code is Code.NOT_FOUND:
                raise invalid(
                    "dataset", model.dataset, "an existing dataset (the model names one that is gone)"
                ) from error
            raise
        if dataset.status != "FINISHED":
            raise invalid("dataset", model.dataset, f"a dataset that is FINISHED; this one is {dataset.status}")
        for split in ("train", "test"):
            if not dataset.splits.get(split):
                raise invalid("dataset", model.dataset, f"a dataset with train and test data; this one has no {split}")
        return dataset


def _check_request(request: TrainingRequest) -> str:
    """The framework as the platform spells it; raises for what can be judged without looking anything up."""
    check_name("trainName", request.name)
    framework = next((known for known in FRAMEWORKS if known.lower() == request.framework.lower()), None)
    if framework is None:
        raise invalid("dlFramework", request.framework, FRAMEWORKS)
    if request.cluster_size < 1:
        raise invalid("clusterSize", request.cluster_size, "1 or more")
    for field, value in (
        ("gpuRatio", request.gpu_ratio),
        ("testInterval", request.test_interval),
        ("testIteration", request.test_iteration),
    ):
        if value < 0:
            raise invalid(field, value, "0 or more")
    sync_mode = request.sync_mode.upper()
    if sync_mode not in ("", "SYNC", "ASYNC"):
        raise invalid("syncMode", request.sync_mode, ("SYNC", "ASYNC"))
    if sync_mode == "ASYNC":
        raise not_built("syncMode ASYNC")
    if request.weights_url:
        raise not_built("wtURL")
    if request.command:
        raise not_built("cmd")
    return framework


def _check_model(model: ModelFacts, request: TrainingRequest, framework: str) -> None:
    if model.framework.lower() != framework.lower():
        raise invalid("dlFramework", request.framework, f"{model.framework}, the framework of model {model.name!r}")
    accelerator = model.accelerator.lower()
    if accelerator == "elastic":
        raise not_built("accelerator Elastic")
    if accelerator == "single" and request.cluster_size > 1:
        raise invalid("clusterSize", request.cluster_size, f"1, because the accelerator of {model.name!r} is Single")
