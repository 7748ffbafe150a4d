"""Start a training: check the request, freeze the facts it starts from, write one row."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from servicekit.errors import Code, ServiceError, invalid
from servicekit.identity import current_identity
from servicekit.jobs import MAX_PRIORITY, MAX_SECONDS
from servicekit.names import check_name
from servicekit.times import utc_now
from servicekit.weight_paths import WeightPaths

from training_service.domain.runs import Training
from training_service.domain.specs import ELASTIC_MAIN, MAIN, PROGRAMLESS_FRAMEWORKS, program_of
from training_service.usecases.ports import DatasetFacts, Datasets, Jobs, ModelFacts, Models, Trainings

DEFAULT_BATCH_SIZE = 32
DEFAULT_TEST_INTERVAL = 100
DEFAULT_TEST_ITERATION = 10
DEFAULT_CHECKPOINTS_KEPT = 2
DEFAULT_MAX_RESTARTS = 2
MAX_RESTARTS = 100
MAX_COMMAND_LENGTH = 10_000
MAX_ADDRESS_LENGTH = 8192
# Words, as they stand in the command, that mean something to a shell only: && || | ; & > 2>&1 <in.txt and their like.
_OPERATOR = re.compile(r"""[|&;]+|[^;='"]+;+|(?:\d*|&)(?:>>?|<{1,3}|<>)[|&]?[^<>|&]*""")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_NO_SHELL = "because it is run without a shell; bash -c '...' runs what is in the quotes in one"


@dataclass(frozen=True)
class TrainingRequest:
    """The body of a start request; empty text, 0 and None mean that a field was not given."""

    name: str
    framework: str
    cluster_size: int
    command: str = ""
    weights_url: str = ""
    initial_weights: str = ""
    weights_folder: str = ""
    gpu_percentage: int = 0
    test_interval: int = 0
    test_iterations: int = 0
    sync_mode: str = ""
    min_workers: int = 0
    checkpoint_interval: int = 0
    checkpoints_kept: int = 0
    max_restarts: int | None = None
    max_silent_seconds: int = 0
    priority: int = 0
    max_seconds: int = 0


class StartTraining:
    """Callable with a model's name and a request; returns the stored training."""

    def __init__(
        self,
        trainings: Trainings,
        models: Models,
        datasets: Datasets,
        jobs: Jobs,
        weights: WeightPaths,
        wake: Callable[[], None],
        *,
        max_silent_seconds: int = 0,
    ) -> None:
        self._trainings = trainings
        self._max_silent_seconds = max_silent_seconds
        self._models, self._datasets, self._jobs = models, datasets, jobs
        self._weights, self._wake = weights, wake

    async def __call__(self, model_name: str, request: TrainingRequest) -> Training:
        _check_request(request)
        model = await self._models.get(model_name)
        framework = await self._framework(request, model)
        _check_model(model, request)
        owner = current_identity().user
        initial_weights, weights_folder = await self._initial(model, request)
        dataset = await self._finished_dataset(model)
        group = await self._jobs.instance_group("sigid", model.instance_group, named_by="sig of the model")
        is_elastic = model.accelerator == "Elastic"
        # An elastic training runs with the workers it can get.
        needed = (request.min_workers or 1) if is_elastic else request.cluster_size
        room = group.room(request.gpu_percentage)
        if needed > room:
            limit = f"the slots of {group.name}" if room == group.slots else f"what the GPUs of {group.name} hold"
            raise invalid("minWorkers" if is_elastic else "clusterSize", needed, f"1 to {room}, {limit}")
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
            dataset_type=dataset.type,
            data=dict(dataset.splits),
            hyperparameter=dict(model.hyperparameter),
            batch_size=model.batch_size or DEFAULT_BATCH_SIZE,
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
        )
        if not request.command:
            await asyncio.to_thread(_check_program, model, is_elastic)
        await self._trainings.add(training)
        self._wake()
        return training

    async def _initial(self, model: ModelFacts, request: TrainingRequest) -> tuple[str, str]:
        """Weight file and folder to begin from: the request's if it names any weights, else the model's."""
        source: TrainingRequest | ModelFacts = request
        owner, of_model = current_identity().user, ""
        if not (request.initial_weights or request.weights_folder or request.weights_url):
            # Uploads that the model names are its owner's.
            source, owner, of_model = model, model.owner, " of the model"
        return (
            await self._place(f"wfinit{of_model}", source.initial_weights, owner, is_folder=False),
            await self._place(f"wtfolder{of_model}", source.weights_folder, owner, is_folder=True),
        )

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


def _check_request(request: TrainingRequest) -> None:
    """Raise for what can be judged without looking anything up."""
    check_name("trainName", request.name)
    if not request.framework:
        raise invalid("dlFramework", "", "the name of a framework; GET /frameworks/all lists them")
    if request.cluster_size < 1:
        raise invalid("clusterSize", request.cluster_size, "1 or more")
    for field, value, most in (
        ("gpuRatio", request.gpu_percentage, 100),
        ("testInterval", request.test_interval, None),
        ("testIteration", request.test_iterations, None),
        ("minWorkers", request.min_workers, request.cluster_size),
        ("checkpointInterval", request.checkpoint_interval, None),
        ("checkpointsKept", request.checkpoints_kept, None),
        ("maxRestarts", request.max_restarts or 0, MAX_RESTARTS),
        ("maxSilentSeconds", request.max_silent_seconds, None),
        ("maxSeconds", request.max_seconds, MAX_SECONDS),
    ):
        if value < 0 or (most is not None and value > most):
            raise invalid(field, value, "0 or more" if most is None else f"0 to {most}")
    if not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
        raise invalid("priority", request.priority, f"{-MAX_PRIORITY} to {MAX_PRIORITY}")
    if request.sync_mode.upper() not in ("", "SYNC", "ASYNC"):
        raise invalid("syncMode", request.sync_mode, ("SYNC", "ASYNC"))
    if request.weights_url:
        if request.initial_weights or request.weights_folder:
            raise invalid("wtURL", request.weights_url, "not together with wfinit or wtfolder")
        _check_address(request.weights_url)
    elif request.initial_weights and request.weights_folder:
        raise invalid("wtfolder", request.weights_folder, "not together with wfinit")
    if request.command:
        _check_command(request.command)


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or len(address) > MAX_ADDRESS_LENGTH or not address.isprintable() or " " in address:
        allowed = (
            f"an http or https address of at most {MAX_ADDRESS_LENGTH} characters without spaces, its port, if "
            "any, up to 65535; in a name or password / ? # [ ] are written as %2F %3F %23 %5B %5D"
        )
        raise invalid("wtURL", address, allowed)


def _check_command(command: str) -> None:
    if "\0" in command or len(command) > MAX_COMMAND_LENGTH:
        raise invalid("cmd", command[:100], f"at most {MAX_COMMAND_LENGTH} characters, none of them NUL")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise invalid("cmd", command, f"a command line with closed quotes ({error})") from error
    if not words:
        raise invalid("cmd", command, "a command line such as python train.py --epochs 3")
    for word in _as_written(command):
        # What is quoted is meant as it is.
        has_substitution = ("$(" in word or "`" in word) and not {"'", '"'} & {*word}
        if has_substitution or _OPERATOR.fullmatch(word):
            raise invalid("cmd", command, f"a command line without {word[:50]}, {_NO_SHELL}")
    if _ASSIGNMENT.fullmatch(words[0]):
        raise invalid("cmd", command, f"a program and its arguments, not {words[0][:50]} before it, {_NO_SHELL}")


def _as_written(command: str) -> list[str]:
    """The words of a command with their quotes and backslashes."""
    try:
        return shlex.split(command, posix=False)
    except ValueError:
        # A quote behind a backslash, which only the other rules know.
        return []


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
