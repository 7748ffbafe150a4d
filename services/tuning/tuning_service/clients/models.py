"""The models service, asked with the caller's own rights."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Collection
from uuid import uuid4

from dlmesh.models.v1 import copies_pb2, copies_pb2_grpc, models_pb2, models_pb2_grpc
from google.protobuf.json_format import ParseDict
from servicekit.channels import Channels, call_peer
from servicekit.errors import Code, ServiceError

from tuning_service.usecases.tunings import TrialModel

# A model's folder may be large.
COPY_SECONDS = 600.0


class ModelsClient:
    """`usecases.tunings.Models`."""

    def __init__(self, channels: Channels) -> None:
        self._models = channels.stub("models", models_pb2_grpc.ModelServiceStub)
        self._copies = channels.stub("models", copies_pb2_grpc.ModelCopyServiceStub)

    async def uid_of(self, name: str) -> str:
        request = models_pb2.GetModelRequest(model_name=name)
        return str((await call_peer(lambda: self._models.GetModel(request))).uid)

    async def copy(self, name: str, new_name: str, trial: TrialModel) -> None:
        drawn: set[str] = set()

        def call() -> Awaitable[copies_pb2.CopyModelResponse]:
            # Another one each time: of a call that was cut off half a folder may be there.
            uid = uuid4().hex
            drawn.add(uid)
            request = copies_pb2.CopyModelRequest(
                model_name=name,
                new_model_name=new_name,
                hyperparameters=_hyperparameters(trial),
                batch_size=trial.batch_size,
                config_json=_config(trial),
                uid=uid,
            )
            answer: Awaitable[copies_pb2.CopyModelResponse] = self._copies.CopyModel(request)
            return answer

        try:
            await call_peer(call, timeout_seconds=COPY_SECONDS)
        except ServiceError as error:
            if error.code is not Code.ALREADY_EXISTS or not await self._is_one_of(new_name, drawn):
                raise

    async def _is_one_of(self, name: str, uids: Collection[str]) -> bool:
        """Whether the model of this name was made by a call whose answer was lost."""
        try:
            return await self.uid_of(name) in uids
        except ServiceError as error:
            if error.code not in (Code.NOT_FOUND, Code.PERMISSION_DENIED):
                raise
            return False

    async def change(self, name: str, trial: TrialModel) -> None:
        request = copies_pb2.ConfigureModelRequest(
            model_name=name,
            hyperparameters=_hyperparameters(trial),
            batch_size=trial.batch_size,
            config_json=_config(trial),
        )
        await call_peer(lambda: self._copies.ConfigureModel(request))


def _hyperparameters(trial: TrialModel) -> models_pb2.Hyperparameters:
    return ParseDict(dict(trial.hyperparameters), models_pb2.Hyperparameters())


def _config(trial: TrialModel) -> str:
    """What the program's own config.json is to hold; empty when it has no parameters of its own."""
    return json.dumps({**trial.hyperparameters, **trial.user_defined}) if trial.user_defined else ""
