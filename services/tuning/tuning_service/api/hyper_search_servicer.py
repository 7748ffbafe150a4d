"""HyperSearchService: searches over programs that users bring, and their algorithms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from dlmesh.tuning.v1 import tuning_pb2, tuning_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from servicekit.errors import Code, ServiceError, invalid
from servicekit.folders import remove_folder

from tuning_service.api.form import receive_form
from tuning_service.api.mapping import algorithm_detail, experiments, hyper_search_detail
from tuning_service.api.pages import page_of
from tuning_service.usecases.algorithms import ManageAlgorithms
from tuning_service.usecases.start_hyper_search import StartHyperSearch
from tuning_service.usecases.studies import Budget, ChangeStudies, FindStudies, Importance, ParetoFront


class HyperSearchServicer(tuning_pb2_grpc.HyperSearchServiceServicer):
    """Translates; see tuning.proto for what each call promises. `spool_of` says where an upload may be received."""

    def __init__(
        self,
        start: StartHyperSearch,
        find: FindStudies,
        change: ChangeStudies,
        algorithms: ManageAlgorithms,
        pareto_front: ParetoFront,
        importance: Importance,
        now: Callable[[], datetime],
        spool_of: Callable[[str], Path],
        *,
        max_upload_bytes: int,
    ) -> None:
        self._start, self._find, self._change, self._now = start, find, change, now
        self._algorithms, self._pareto_front, self._importance = algorithms, pareto_front, importance
        self._spool_of, self._max_upload_bytes = spool_of, max_upload_bytes

    async def StartHyperSearch(
        self, requests: AsyncIterator[tuning_pb2.StartHyperSearchRequest], context: Any
    ) -> StringValue:
        spool = self._spool_of(uuid4().hex)
        try:
            form = await receive_form(requests, spool, self._max_upload_bytes)
            return StringValue(value=(await self._start(form.data, form.file)).name)
        finally:
            await asyncio.to_thread(_remove, spool)

    async def ListHyperSearches(
        self, request: tuning_pb2.ListHyperSearchesRequest, context: Any
    ) -> AsyncIterator[tuning_pb2.HyperSearchDetail]:
        for view in await self._find.views(length=request.length if request.HasField("length") else None):
            yield hyper_search_detail(view, self._now())

    async def GetHyperSearch(
        self, request: tuning_pb2.GetHyperSearchRequest, context: Any
    ) -> tuning_pb2.HyperSearchDetail:
        with _unknown_is_invalid("hpoName", request.name, "the name of an HPO task"):
            study = await self._find.get(request.name)
        start = request.start if request.HasField("start") else None
        return hyper_search_detail(await self._find.view(study, start=start, length=request.length), self._now())

    async def ListExperiments(
        self, request: tuning_pb2.ListExperimentsRequest, context: Any
    ) -> AsyncIterator[tuning_pb2.Experiment]:
        study = await self._find.get(request.name)
        page = page_of(request)
        trials = await (self._pareto_front(study, page) if request.pareto else self._find.page(study, page))
        for one in experiments(study, trials):
            yield one

    async def ListParameterImportances(
        self, request: tuning_pb2.ListParameterImportancesRequest, context: Any
    ) -> AsyncIterator[tuning_pb2.ParameterImportance]:
        for name, importance in await self._importance(await self._find.get(request.name)):
            yield tuning_pb2.ParameterImportance(name=name, importance=importance)

    async def StopHyperSearch(self, request: tuning_pb2.StopHyperSearchRequest, context: Any) -> Empty:
        await self._change.stop(await self._find.get(request.name), at_once=False)
        return Empty()

    async def ForceStopHyperSearch(self, request: tuning_pb2.ForceStopHyperSearchRequest, context: Any) -> Empty:
        await self._change.stop(await self._find.get(request.name), at_once=True)
        return Empty()

    async def RestartHyperSearch(self, request: tuning_pb2.RestartHyperSearchRequest, context: Any) -> Empty:
        budget = Budget(
            request.max_jobs if request.HasField("max_jobs") else None,
            request.max_run_minutes if request.HasField("max_run_minutes") else None,
        )
        await self._change.restart(await self._find.get(request.name), budget)
        return Empty()

    async def DeleteHyperSearch(self, request: tuning_pb2.DeleteHyperSearchRequest, context: Any) -> Empty:
        await self._change.delete(await self._find.get(request.name))
        return Empty()

    async def DeleteAllHyperSearches(self, request: tuning_pb2.DeleteAllHyperSearchesRequest, context: Any) -> Empty:
        await self._change.delete_all()
        return Empty()

    async def ListAlgorithms(
        self, request: tuning_pb2.ListAlgorithmsRequest, context: Any
    ) -> AsyncIterator[tuning_pb2.AlgorithmDetail]:
        for algorithm in await self._algorithms.known(request.kind):
            yield algorithm_detail(algorithm)

    async def GetAlgorithm(self, request: tuning_pb2.GetAlgorithmRequest, context: Any) -> tuning_pb2.AlgorithmDetail:
        with _unknown_is_invalid("algoName", request.name, "the name of an algorithm"):
            return algorithm_detail(await self._algorithms.get(request.name))

    async def InstallAlgorithm(
        self, requests: AsyncIterator[tuning_pb2.InstallAlgorithmRequest], context: Any
    ) -> StringValue:
        spool = self._spool_of(uuid4().hex)
        try:
            form = await receive_form(requests, spool, self._max_upload_bytes)
            return StringValue(value=(await self._algorithms.install(form.data, form.file)).name)
        finally:
            await asyncio.to_thread(_remove, spool)

    async def DeleteAlgorithm(self, request: tuning_pb2.DeleteAlgorithmRequest, context: Any) -> Empty:
        await self._algorithms.remove(request.name)
        return Empty()


@contextmanager
def _unknown_is_invalid(field: str, name: str, allowed: str) -> Iterator[None]:
    """As the reference has it: an unknown name is a bad request to GET."""
    try:
        yield
    except ServiceError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        raise invalid(field, name, allowed) from error


def _remove(folder: Path) -> None:
    if folder.exists():
        remove_folder(folder)
