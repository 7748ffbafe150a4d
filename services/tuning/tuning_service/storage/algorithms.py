"""Algorithms: the built-in ones of the registry, and the table of those that users installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import already_exists
from sqlalchemy.exc import IntegrityError

from tuning_service.algorithms import registry
from tuning_service.domain.plugin_facts import PluginFacts
from tuning_service.storage.tables import AlgorithmRow
from tuning_service.usecases.ports import InstalledAlgorithm


@dataclass(frozen=True)
class BuiltIn:
    """`domain.plan.AlgorithmFacts` of an entry of the registry."""

    name: str
    entry: registry.Entry

    @property
    def takes_experiments(self) -> bool:
        return self.name == "ExperimentGridSearch"

    @property
    def needs_resource(self) -> bool:
        return self.entry.needs_resource

    @property
    def max_objectives(self) -> int:
        return self.entry.max_objectives

    @property
    def takes_warm_start(self) -> bool:
        return self.entry.learns

    @property
    def takes_start_points(self) -> bool:
        # Trials of the others mean more than their parameters.
        return not self.takes_experiments and not self.needs_resource

    def read_settings(self, given: Mapping[str, str]) -> Mapping[str, Any]:
        return registry.read_settings(self.entry, given)


class SqlAlgorithms:
    """`usecases.ports.Algorithms`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def built_in(self) -> Sequence[str]:
        return list(registry.ALGORITHMS)

    async def find(self, name: str) -> BuiltIn | PluginFacts | None:
        if (found := registry.find(name)) is not None:
            return BuiltIn(*found)
        async with self._database.session(read_only=True) as session:
            row = await session.get(AlgorithmRow, name)
        return None if row is None else PluginFacts(row.name)

    async def installed(self) -> Sequence[InstalledAlgorithm]:
        async with self._database.session(read_only=True) as session:
            return [
                _installed(row) for row in await session.scalars(sa.select(AlgorithmRow).order_by(AlgorithmRow.name))
            ]

    async def add(self, algorithm: InstalledAlgorithm) -> None:
        try:
            async with self._database.session() as session:
                session.add(AlgorithmRow(**vars(algorithm)))
        except IntegrityError as error:
            raise already_exists("algorithm", algorithm.name) from error

    async def remove(self, name: str) -> InstalledAlgorithm | None:
        async with self._database.session() as session:
            row = await session.get(AlgorithmRow, name)
            if row is None:
                return None
            await session.delete(row)
            return _installed(row)


def _installed(row: AlgorithmRow) -> InstalledAlgorithm:
    return InstalledAlgorithm(**{name: getattr(row, name) for name in InstalledAlgorithm.__dataclass_fields__})
