"""Look at algorithms, install and remove those of users."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from uuid import uuid4

from servicekit.errors import ServiceError, already_exists, in_use, invalid, not_found
from servicekit.identity import current_identity
from servicekit.names import check_name
from servicekit.threads import in_thread

from tuning_service.domain.fields import Fields
from tuning_service.usecases.ports import Algorithms, InstalledAlgorithm, PluginFolders, Studies
from tuning_service.usecases.start_hyper_search import Upload

RESERVED = frozenset({"install"})
BUILD_IN, USER_PLUGIN = "BUILD_IN", "USER_PLUGIN"
_LEVELS = {level.lower(): level for level in ("DEBUG", "INFO", "WARN", "WARNING", "ERROR", "CRITICAL")}


class ManageAlgorithms:
    """What is installed may be used by everybody, and removed by who installed it or by an administrator."""

    def __init__(
        self, algorithms: Algorithms, studies: Studies, folders: PluginFolders, now: Callable[[], datetime]
    ) -> None:
        self._algorithms, self._studies, self._folders, self._now = algorithms, studies, folders, now

    async def known(self, kind: str) -> list[str | InstalledAlgorithm]:
        """Names of the built-in algorithms, then installed ones; of one `kind` when it is not empty."""
        if kind.upper() not in ("", BUILD_IN, USER_PLUGIN):
            raise invalid("type", kind, (BUILD_IN, USER_PLUGIN))
        built_in: list[str | InstalledAlgorithm] = [] if kind.upper() == USER_PLUGIN else [*self._algorithms.built_in()]
        return built_in + ([] if kind.upper() == BUILD_IN else [*await self._algorithms.installed()])

    async def get(self, name: str) -> str | InstalledAlgorithm:
        """One of them; NOT_FOUND."""
        found = await self._algorithms.find(name)
        if found is None:
            raise not_found("algorithm", name)
        installed = await self._algorithms.installed()
        return next((one for one in installed if one.name == found.name), found.name)

    async def install(self, tree: Mapping[str, Any], upload: Upload | None) -> InstalledAlgorithm:
        """Keep a copy of a plug-in, from a path of the server or from an upload; 400 for one that cannot be used."""
        # Its code runs in the searches of everybody.
        current_identity().require_admin("install algorithms")
        fields = Fields("", tree)
        name = check_name("name", fields.text("name"), RESERVED)
        if await self._algorithms.find(name) is not None:
            raise already_exists("algorithm", name)
        path = fields.text("path", default="")
        if bool(path) == (upload is not None):
            given = "given beside an upload" if path else ""
            raise invalid("path", given, "a folder or tar on the server, or a part `file` with a tar; one of them")
        _, remote = fields.get("remoteExec")
        algorithm = InstalledAlgorithm(
            name=name,
            uid=uuid4().hex,
            creator=current_identity().user,
            created_at=self._now(),
            path=path,
            conda_home=fields.text("condaHome", default=""),
            conda_environment=fields.text("condaEnv", default=""),
            remote_execution=str(remote).lower() == "true",
            log_level=fields.word("logLevel", _LEVELS, default="INFO"),
        )
        await self._remove_orphans()
        try:
            await in_thread(self._folders.install, algorithm, upload.path if upload else None)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._folders.remove, algorithm.uid))
            raise
        # A client that goes away now has an algorithm all the same, or none: nothing in between.
        return await asyncio.shield(self._add(algorithm))

    async def _add(self, algorithm: InstalledAlgorithm) -> InstalledAlgorithm:
        try:
            await self._algorithms.add(algorithm)
        except ServiceError:
            await asyncio.to_thread(self._folders.remove, algorithm.uid)
            raise
        # Whatever else is thrown may come after the commit: a folder without a row is removed as an orphan.
        return algorithm

    async def remove(self, name: str) -> None:
        """Remove an installed one: 404, 400 for a built-in one, 409 while a study of it runs, or a trial of one."""
        found = await self.get(name)
        if isinstance(found, str):
            raise invalid("algoName", name, "an algorithm that a user installed; this one is built in")
        current_identity().require_access("algorithm", name, found.creator)
        await self._check_unused(found.name)
        if await self._algorithms.remove(found.name) is not None:
            await asyncio.to_thread(self._folders.remove, found.uid)

    async def _remove_orphans(self) -> None:
        """What a kill left of an installation or a removal."""
        if names := await asyncio.to_thread(self._folders.orphans):
            installed = {algorithm.uid for algorithm in await self._algorithms.installed()}
            for name in set(names) - installed:
                await asyncio.to_thread(self._folders.remove_orphan, name)

    async def _check_unused(self, name: str) -> None:
        for study in await self._studies.tended():
            # One that was stopped by force may have trials that run on for a while.
            if study.algorithm == name and (not study.status.is_final or study.counts.open):
                what = "whose trials are being stopped" if study.status.is_final else "which runs"
                raise in_use("algorithm", name, f"{study.kind.word} {study.name!r}, {what}")
