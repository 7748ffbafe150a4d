"""Install and remove framework plug-ins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from servicekit.errors import invalid
from servicekit.identity import current_identity
from servicekit.paths import DataRoots

from scheduling_service.usecases.exec_ports import ExecFramework, ExecFrameworks


class ManageExecFrameworks:
    """For administrators, but for the list."""

    def __init__(self, frameworks: ExecFrameworks, data_roots: Sequence[Path]) -> None:
        self._frameworks, self._roots = frameworks, DataRoots(data_roots)

    async def list(self) -> Sequence[ExecFramework]:
        return await asyncio.to_thread(self._frameworks.all)

    async def install(self, path: str) -> ExecFramework:
        """400 when the folder does not lie below a data root, or says what it lacks."""
        current_identity().require_admin("install frameworks")
        source = await asyncio.to_thread(self._roots.resolve, "path", path)
        if not source.is_dir():
            raise invalid("path", path, "a folder with framework.json and its command generator")
        return await asyncio.to_thread(self._frameworks.install, source)

    async def remove(self, name: str) -> None:
        """404 when none of that name is installed."""
        current_identity().require_admin("remove frameworks")
        await asyncio.to_thread(self._frameworks.remove, name)
