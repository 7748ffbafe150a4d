"""From a model and a request to a training: everything looked up once, checked, and frozen."""

from __future__ import annotations

import asyncio
from pathlib import Path

from servicekit.errors import Code, ServiceError, invalid
from servicekit.identity import current_identity
from servicekit.jobs import InstanceGroup
from servicekit.times import utc_now
from servicekit.weight_paths import WeightPaths

from training_service.domain.runs import Training, room_for
from training_service.domain.specs import ELASTIC_MAIN, MAIN, PROGRAMLESS_FRAMEWORKS, program_of
from training_service.domain.trials import TrialParts
from training_service.usecases.ports import DatasetFacts, Datasets, Jobs, ModelFacts, Models, Trainings
from training_service.usecases.training_request import TrainingRequest

DEFAULT_BATCH_SIZE = 32
DEFAULT_TEST_INTERVAL = 100
DEFAULT_TEST_ITERATION = 10
DEFAULT_CHECKPOINTS_KEPT = 2
DEFAULT_MAX_RESTARTS = 2


class PrepareTraining:
    """Callable with a model, a request that was checked by itself, and ids: looks up what they name, and freezes the
    facts that the training starts from.

    Nothing is written. What the caller may not see is 403, what is wrong 400.
    """

    def __init__(
        self,
        trainings: Trainings,
        models: Models,
        datasets: Datasets,
        jobs: Jobs,
        weights: WeightPaths,
        *,
        max_silent_seconds: int = 0,
    ) -> None:
        self._trainings, self._models, self._datasets = trainings, models, datasets
        self._jobs, self._weights = jobs, weights
        self._max_silent_seconds = max_silent_seconds

    async def __call__(self, model: ModelFacts, request: TrainingRequest, uid: str, job_id: str) -> Training:
        parts = request.trial or TrialParts("")
        framework = await self._framework(request, model)
        _check_model(model, request)
        owner = current_identity().user
        initial_weights, weights_folder = await self._initial(model, request)
        dataset = await self._finished_dataset(model)
        group = await self._group(model, parts)
        is_elastic = model.accelerator == "Elastic"
        # An elastic training runs with the workers it can get.
        needed = (request.min_workers or 1) if is_elastic else request.cluster_size
        _check_room(group, request, parts, needed, is_elastic=is_elastic)
        if not request.command:
            await asyncio.to_thread(_check_program, model, is_elastic)
        return Training(
            uid=uid,
            name=request.name,
            model_uid=model.uid,
            model_name=model.name,
            dataset_name=dataset.name,
            owner=owner,
            group=group,
            created_at=utc_now(),
            job_id=job_id,
            dataset_uid=dataset.uid,
            dataset_hash=dataset.content_hash,
            dataset_type=dataset.type,
            data=dict(dataset.splits),
            hyperparameter=dict(parts.hyperparameter if request.trial else model.hyperparameter),
            batch_size=parts.batch_size or model.batch_size or DEFAULT_BATCH_SIZE,
            framework=framework,
            cluster_size=request.cluster_size,
            gpu_percentage=request.gpu_percentage,
            test_interval=request.test_interval or DEFAULT_TEST_INTERVAL,
            test_iterations=request.test_iterations or DEFAULT_TEST_ITERATION,
            sync_mode=request.sync_mode.upper() or "SYNC",
            accelerator=model.accelerator,
            min_workers=needed if is_elastic else 0,
            command=request.command,
            distribute_strategy=model.distribute_strategy,
            checkpoint_interval=request.checkpoint_interval,
            checkpoints_kept=request.checkpoints_kept or DEFAULT_CHECKPOINTS_KEPT,
            max_restarts=DEFAULT_MAX_RESTARTS if request.max_restarts is None else request.max_restarts,
            max_silent_seconds=request.max_silent_seconds or self._max_silent_seconds,
            priority=request.priority,
            max_seconds=request.max_seconds,
            weights_url=request.weights_url,
            initial_weights=initial_weights,
            weights_folder=weights_folder,
            model_path=model.path,
            study=parts.study,
            trial_number=parts.number,
            user_defined=dict(parts.user_defined),
            gpus_per_worker=parts.gpus_per_worker,
        )

    async def _group(self, model: ModelFacts, parts: TrialParts) -> InstanceGroup:
        if parts.instance_group:
            return await self._jobs.instance_group("sigid", parts.instance_group, named_by="sigid")
        return await self._jobs.instance_group("sig of the model", model.instance_group, named_by="sig of the model")

    async def _initial(self, model: ModelFacts, request: TrainingRequest) -> tuple[str, str]:
        """Weight file and folder to begin from: the request's if it names any weights, else the model's."""
        if request.trial and request.trial.weights:
            return await self._file_or_folder(request.trial.weights)
        source: TrainingRequest | ModelFacts = request
        owner, of_model = current_identity().user, ""
        if not (request.initial_weights or request.weights_folder or request.weights_url):
            # Uploads that the model names are its owner's.
            source, owner, of_model = model, model.owner, " of the model"
        return (
            await self._place(f"wfinit{of_model}", source.initial_weights, owner, is_folder=False),
            await self._place(f"wtfolder{of_model}", source.weights_folder, owner, is_folder=True),
        )

    async def _file_or_folder(self, text: str) -> tuple[str, str]:
        owner = current_identity().user
        for is_folder in (False, True):
            try:
                path = await self._place("wfinit", text, owner, is_folder=is_folder)
            except ServiceError as error:
                if error.code is not Code.INVALID_ARGUMENT:
                    raise
            else:
                return ("", path) if is_folder else (path, "")
        allowed = "an existing file or folder: an upload of yours, in a training of yours, or below a data root"
        raise invalid("wfinit", text, allowed)

    async def _place(self, field: str, text: str, owner: str, *, is_folder: bool) -> str:
        """The weights that a field names; 403 when they are those of somebody else's training."""
        if not text:
            return ""
        path = str(await asyncio.to_thread(self._weights.resolve, field, text, owner, is_folder=is_folder))
        if uid := self._weights.training_of(path):
            training = await self._trainings.by_uid(uid)
            if training is None:
                raise invalid(field, text, "weights of a training that exists")
            current_identity().require_access("training", training.name, training.owner)
        return path

    async def _framework(self, request: TrainingRequest, model: ModelFacts) -> str:
        """The framework of the model, if the request names it and it is installed."""
        installed = await self._models.frameworks()
        wanted = request.framework.casefold()
        backends = {known.backend for known in installed if wanted in (known.name.casefold(), known.backend.casefold())}
        if not backends:
            raise invalid("dlFramework", request.framework, sorted({known.name for known in installed}))
        if model.framework not in backends:
            raise invalid("dlFramework", request.framework, f"{model.framework}, the framework of model {model.name!r}")
        return model.framework

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


def _check_room(
    group: InstanceGroup, request: TrainingRequest, parts: TrialParts, needed: int, *, is_elastic: bool
) -> None:
    if group.gpus and parts.gpus_per_worker > group.gpus:
        raise invalid("gpus", parts.gpus_per_worker, f"1 to {group.gpus}, the GPUs of {group.name}")
    room = room_for(group, request.gpu_percentage, parts.gpus_per_worker)
    if needed > room:
        limit = f"the slots of {group.name}" if room == group.slots else f"what the GPUs of {group.name} hold"
        raise invalid("minWorkers" if is_elastic else "clusterSize", needed, f"1 to {room}, {limit}")


def _check_program(model: ModelFacts, is_elastic: bool) -> None:
    """400 when the model has no program to start from."""
    if model.framework in PROGRAMLESS_FRAMEWORKS:
        return
    if not (Path(model.path) / program_of(Path(model.path), is_elastic=is_elastic)).is_file():
        file = f"{ELASTIC_MAIN} or {MAIN}" if is_elastic else MAIN
        allowed = (
            f"a model with a {file}, which the accelerator {model.accelerator} starts; write that file, or give cmd"
        )
        raise invalid("modelname", model.name, allowed)


def _check_model(model: ModelFacts, request: TrainingRequest) -> None:
    if model.type == "Inference":
        raise invalid("modelname", model.name, "a model of type Training; this one is for inference only")
    is_elastic = model.accelerator == "Elastic"
    if is_elastic and model.framework in PROGRAMLESS_FRAMEWORKS and not request.command:
        raise invalid(
            f"accelerator of model {model.name!r}", model.accelerator, "Single or Native, as it is a Caffe net"
        )
    if model.accelerator == "Single" and request.cluster_size > 1:
        raise invalid("clusterSize", request.cluster_size, f"1, because the accelerator of {model.name!r} is Single")
    if request.sync_mode.upper() == "ASYNC" and not is_elastic:
        raise invalid("syncMode", request.sync_mode, f"SYNC, because the accelerator of {model.name!r} is not Elastic")
    if request.min_workers and not is_elastic:
        raise invalid("minWorkers", request.min_workers, f"0, because the accelerator of {model.name!r} is not Elastic")
