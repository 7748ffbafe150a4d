"""Who is asked what to try next: a built-in algorithm, or one that a user installed."""

from __future__ import annotations

from collections.abc import Mapping

from tuning_service.domain.evaluation import Answer, Problem
from tuning_service.domain.study import Study
from tuning_service.suggestions.built_in import BuiltInSuggestions
from tuning_service.suggestions.importance_process import ImportanceProcesses
from tuning_service.suggestions.plugin import PluginSuggestions
from tuning_service.usecases.ports import Algorithms, History, SuggestionError


class Suggestions:
    """`usecases.ports.Suggestions`."""

    def __init__(
        self,
        algorithms: Algorithms,
        built_in: BuiltInSuggestions,
        plugins: PluginSuggestions,
        importance: ImportanceProcesses,
    ) -> None:
        self._algorithms, self._built_in, self._plugins = algorithms, built_in, plugins
        self._importance = importance

    async def ask(self, study: Study, algorithm: str, problem: Problem, history: History, count: int) -> Answer:
        if algorithm in self._algorithms.built_in():
            return await self._built_in.ask(study.uid, algorithm, problem, history, count)
        for installed in await self._algorithms.installed():
            if installed.name == algorithm:
                return await self._plugins.ask(study, installed, problem, history, count)
        raise SuggestionError(f"algorithm {algorithm} is installed no longer")

    def doing(self, study_uid: str) -> str:
        return self._plugins.doing(study_uid)

    async def importance(self, study: Study, problem: Problem, history: History) -> Mapping[str, float]:
        return await self._importance.importance(problem, history)

    async def forget(self, study_uid: str) -> None:
        self._built_in.forget(study_uid)
        await self._plugins.forget(study_uid)

    async def close(self) -> None:
        """End all processes."""
        await self._built_in.close()
        await self._plugins.close()
