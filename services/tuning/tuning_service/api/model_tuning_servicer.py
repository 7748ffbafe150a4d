"""ModelTuningService: searches for a model's own hyperparameters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

from dlmesh.tuning.v1 import tuning_pb2, tuning_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict

from tuning_service.api.pages import page_of
from tuning_service.api.tuning_mapping import tuning_detail, tuning_experiments
from tuning_service.domain.study import Study
from tuning_service.usecases.studies import Budget, ChangeStudies, FindStudies, Importance, ParetoFront
from tuning_service.usecases.tunings import Models, StartTuning, UseResult


class ModelTuningServicer(tuning_pb2_grpc.ModelTuningServiceServicer):
    """Translates; see tuning.proto for what each call promises. Only tunings of the model that has the name now are
    seen."""

    def __init__(
        self,
        start: StartTuning,
        find: FindStudies,
        change: ChangeStudies,
        result: UseResult,
        pareto_front: ParetoFront,
        importance: Importance,
        models: Models,
        now: Callable[[], datetime],
    ) -> None:
        self._start, self._find, self._change, self._result = start, find, change, result
        self._pareto_front, self._importance = pareto_front, importance
        self._models, self._now = models, now

    async def StartModelTuning(self, request: tuning_pb2.StartModelTuningRequest, context: Any) -> Empty:
        await self._start(request.model_name, request_tree(request))
        return Empty()

    async def ListModelTunings(
        self, request: tuning_pb2.ListModelTuningsRequest, context: Any
    ) -> AsyncIterator[tuning_pb2.TuningDetail]:
        uid = await self._models.uid_of(request.model_name)
        length = request.length if request.HasField("length") else None
        for view in await self._find.views(model_uid=uid, length=length):
            yield tuning_detail(view, self._now())

    async def GetModelTuning(self, request: tuning_pb2.GetModelTuningRequest, context: Any) -> tuning_pb2.TuningDetail:
        study = await self._get(request.model_name, request.name)
        start = request.start if request.HasField("start") else None
        return tuning_detail(await self._find.view(study, start=start, length=request.length), self._now())

    async def ListTuningExperiments(
        self, request: tuning_pb2.ListTuningExperimentsRequest, context: Any
    ) -> AsyncIterator[tuning_pb2.TuningExperiment]:
        study = await self._get(request.model_name, request.name)
        page = page_of(request)
        trials = await (self._pareto_front(study, page) if request.pareto else self._find.page(study, page))
        for one in tuning_experiments(study, trials):
            yield one

    async def ListTuningParameterImportances(
        self, request: tuning_pb2.ListTuningParameterImportancesRequest, context: Any
    ) -> AsyncIterator[tuning_pb2.ParameterImportance]:
        for name, importance in await self._importance(await self._get(request.model_name, request.name)):
            yield tuning_pb2.ParameterImportance(name=name, importance=importance)

    async def StopModelTuning(self, request: tuning_pb2.StopModelTuningRequest, context: Any) -> Empty:
        await self._stop(await self._get(request.model_name, request.name), at_once=False)
        return Empty()

    async def ForceStopModelTuning(self, request: tuning_pb2.ForceStopModelTuningRequest, context: Any) -> Empty:
        await self._stop(await self._get(request.model_name, request.name), at_once=True)
        return Empty()

    async def RestartModelTuning(self, request: tuning_pb2.RestartModelTuningRequest, context: Any) -> Empty:
        budget = Budget(
            request.max_jobs if request.HasField("max_jobs") else None,
            request.max_run_minutes if request.HasField("max_run_minutes") else None,
        )
        await self._change.restart(await self._get(request.model_name, request.name), budget)
        return Empty()

    async def DeleteModelTuning(self, request: tuning_pb2.DeleteModelTuningRequest, context: Any) -> Empty:
        await self._change.delete(await self._get(request.model_name, request.name))
        return Empty()

    async def CreateModelFromTuning(self, request: tuning_pb2.CreateModelFromTuningRequest, context: Any) -> Empty:
        study = await self._get(request.model_name, request.name)
        await self._result.create(study, request.new_model_name)
        return Empty()

    async def UpdateModelFromTuning(self, request: tuning_pb2.UpdateModelFromTuningRequest, context: Any) -> Empty:
        await self._result.update(await self._get(request.model_name, request.name))
        return Empty()

    async def _get(self, model_name: str, name: str) -> Study:
        return await self._find.get(name, await self._models.uid_of(model_name))

    async def _stop(self, study: Study, *, at_once: bool) -> None:
        # Other than of a search, the reference knows no error for one that has ended.
        if not study.status.is_final:
            await self._change.stop(study, at_once=at_once)


def request_tree(request: tuning_pb2.StartModelTuningRequest) -> dict[str, Any]:
    """The request in the wire's names, as it is stored and read."""
    tree: dict[str, Any] = MessageToDict(request)
    # What the path says, whatever the body says of it.
    tree.pop("modelName", None)
    return tree
