"""Queue a prediction of uploaded files, or of what lies below a data root."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from servicekit.errors import ServiceError, already_exists, invalid, too_many
from servicekit.identity import current_identity
from servicekit.jobs import InstanceGroup
from servicekit.names import check_name
from servicekit.times import utc_now

from inference_service.domain.models import InferenceModel, ModelState
from inference_service.domain.predictions import RESERVED_NAMES, Prediction, Sample
from inference_service.usecases.ports import InferenceModels, Inputs, Jobs, ModelServer, Predictions, Upload, Workspace

RETRY_AFTER_SECONDS = 30


@dataclass(frozen=True)
class PredictionRequest:
    """The parts of the upload; the files lie in the folder that was given to receive them. `input_path` instead of
    files names what lies below a data root."""

    name: str
    model_name: str
    threshold: str
    uploads: Sequence[Upload]
    input_path: str = ""
    group_id: str = ""
    group_name: str = ""
    master_url: str = ""


Receive = Callable[[Path], Awaitable[PredictionRequest]]


class StartPrediction:
    """Callable with what receives the upload into a folder; nothing is left of what is refused."""

    def __init__(
        self,
        predictions: Predictions,
        models: InferenceModels,
        jobs: Jobs,
        server: ModelServer,
        workspace: Workspace,
        inputs: Inputs,
        wake: Callable[[], None],
        max_active: int,
    ) -> None:
        self._predictions, self._models, self._jobs = predictions, models, jobs
        self._server, self._workspace, self._inputs, self._wake = server, workspace, inputs, wake
        self._max_active = max_active
        self._adding = asyncio.Lock()

    async def __call__(self, receive: Receive) -> Prediction:
        # Before gigabytes arrive.
        await self._require_room()
        uid = uuid4().hex
        try:
            request = await receive(self._workspace.folder(uid) / "spool")
            prediction = await self._check(uid, request)
            prediction.samples += await self._workspace.keep(uid, request.uploads)
        except BaseException:
            await asyncio.shield(self._workspace.remove(uid))
            raise
        return await asyncio.shield(self._add(prediction))

    async def _add(self, prediction: Prediction) -> Prediction:
        """Of a client that goes away now there is a prediction all the same, or nothing."""
        try:
            async with self._adding:
                # Others may have come while this one uploaded.
                await self._require_room()
                await self._predictions.add(prediction)
        except ServiceError:
            await self._workspace.remove(prediction.uid)
            raise
        # Whatever else is thrown may come after the commit: a folder without a row is removed as a stray.
        self._wake()
        return prediction

    async def _require_room(self) -> None:
        user = current_identity().user
        count = await self._predictions.count_active(user)
        if count >= self._max_active:
            raise too_many(
                f"{count} predictions of {user} wait or run, at most {self._max_active} may; stop one or wait",
                retry_after_seconds=RETRY_AFTER_SECONDS,
                metadata={"allowed": str(self._max_active)},
            )

    async def _check(self, uid: str, request: PredictionRequest) -> Prediction:
        check_name("predictname", request.name, RESERVED_NAMES)
        if await self._predictions.find(request.name) is not None:
            raise already_exists("prediction", request.name)
        input_path, is_file = self._input_path(request)
        _check_threshold(request.threshold)
        model = await self._model(request.model_name)
        await self._check_pairs(request, model)
        self._server.require()
        return Prediction(
            uid=uid,
            name=request.name,
            owner=current_identity().user,
            model_uid=model.uid,
            model_name=model.name,
            group=await self._group(request, model),
            created_at=utc_now(),
            job_id=uuid4().hex,
            threshold=request.threshold,
            model_version=model.main_version,
            input_path=input_path,
            samples=[Sample(Path(input_path).name, Path(input_path).name)] if is_file else [],
            sample_count=len(request.uploads),
        )

    def _input_path(self, request: PredictionRequest) -> tuple[str, bool]:
        if request.uploads and request.input_path:
            raise invalid("inputpath", request.input_path, "nothing, where files are uploaded")
        if not request.uploads and not request.input_path:
            raise invalid("image0", "", "one image file or more, or inputpath instead")
        return self._inputs.resolve(request.input_path) if request.input_path else ("", False)

    async def _check_pairs(self, request: PredictionRequest, model: InferenceModel) -> None:
        count = len(request.uploads)
        if count % 2 and await self._inputs.task(model, model.main_version) == "comparison":
            raise invalid("image0", f"({count} files)", "an even number of files: they are compared two by two")

    async def _model(self, name: str) -> InferenceModel:
        model = await self._models.find(name) if name else None
        if model is None:
            # The operation documents no 404.
            identity = current_identity()
            known = [each.name for each in await self._models.all() if identity.may_access(each.owner)]
            raise invalid("modelname", name, f"an inference model (POST /inferences makes one); known: {known}")
        current_identity().require_access("model", name, model.owner)
        version = model.version(model.main_version)
        if version.state is ModelState.FAILED:
            raise invalid("modelname", name, f"an inference model that can be served; {version.status_message}")
        return model

    async def _group(self, request: PredictionRequest, model: InferenceModel) -> InstanceGroup:
        asked = [
            (field, text) for field, text in (("sigid", request.group_id), ("signame", request.group_name)) if text
        ]
        groups = [await self._jobs.instance_group(field, text) for field, text in asked]
        if len({group.id for group in groups}) > 1:
            raise invalid("signame", request.group_name, f"{groups[0].name}, which sigid names")
        group = groups[0] if groups else await self._jobs.instance_group("modelname", model.instance_group)
        if request.master_url and request.master_url != group.master_url:
            raise invalid("masterUrl", request.master_url, f"{group.master_url}, that of instance group {group.name}")
        return group


def _check_threshold(text: str) -> None:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise invalid("threshold", text, "a number from 0 to 1")
